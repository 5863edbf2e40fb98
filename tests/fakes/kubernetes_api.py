"""A Kubernetes API server as far as the adapter uses one, over HTTPS: pods, secrets and their metrics in one namespace.

It decodes strictly, allows what the role under `deploy/openclaw/kubernetes` allows, holds pods to the "restricted" Pod
Security Standard, and does what a scheduler, a node and the garbage collector would. Pods are pretended.
"""

import asyncio
import base64
import json
import random
import socket
import ssl
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pretend_instance import PretendInstance

ROLE = Path(__file__).parents[2] / "deploy/openclaw/kubernetes/role.yaml"
NAMESPACE = "retinue-instances"
POD_ADDRESS = "127.78.{}.{}"
"""What a pod's address is here; all of 127.0.0.0/8 can be listened at."""

METADATA = {"name": str, "namespace": str, "labels": {str: str}, "annotations": {str: str}, "ownerReferences": [dict]}
RESOURCES = {"requests": {str: str}, "limits": {str: str}}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str}],
    "ports": [{"name": str, "containerPort": int, "protocol": str}],
    "resources": RESOURCES,
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "capabilities": {"add": [str], "drop": [str]},
        "privileged": bool,
        "readOnlyRootFilesystem": bool,
    },
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
VOLUME = {
    "name": str,
    "emptyDir": {"medium": str, "sizeLimit": str},
    "secret": {"secretName": str, "defaultMode": int},
}
POD_SPEC = {
    "automountServiceAccountToken": bool,
    "containers": [CONTAINER],
    "enableServiceLinks": bool,
    "nodeSelector": {str: str},
    "restartPolicy": str,
    "runtimeClassName": str,
    "securityContext": {
        "fsGroup": int,
        "runAsGroup": int,
        "runAsNonRoot": bool,
        "runAsUser": int,
        "seccompProfile": {"type": str},
    },
    "serviceAccountName": str,
    "shareProcessNamespace": bool,
    "terminationGracePeriodSeconds": int,
    "volumes": [VOLUME],
}
SHAPES = {
    "pods": {"apiVersion": str, "kind": str, "metadata": METADATA, "spec": POD_SPEC},
    "secrets": {
        "apiVersion": str,
        "kind": str,
        "metadata": METADATA,
        "type": str,
        "immutable": bool,
        "data": {str: str},
    },
}
OPTIONS = {"apiVersion": str, "kind": str, "gracePeriodSeconds": int}


def strict(value: Any, shape: Any, path: str = "") -> None:
    """Hold a value to a shape, as a server does with fieldValidation=Strict."""
    kind = dict if isinstance(shape, dict) else list if isinstance(shape, list) else shape
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(400, "BadRequest", f"json: cannot unmarshal {path} into {kind.__name__}")
    if isinstance(shape, list):
        for one in value:
            strict(one, shape[0], f"{path}[]")
    elif isinstance(shape, dict):
        for name, one in value.items():
            if name not in shape and str not in shape:
                raise Refused(400, "BadRequest", f'strict decoding error: unknown field "{path}.{name}"')
            strict(one, shape.get(name, shape.get(str)), f"{path}.{name}")


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class KubernetesApi:
    """The cluster. `url` is its address, `account` the folder of a service account. What a test may turn is below."""

    def __init__(self, folder: Path) -> None:
        self.account = folder
        self.url = ""
        self.pods: dict[str, dict] = {}
        self.secrets: dict[str, dict] = {}
        self.running: dict[str, PretendInstance] = {}
        self.quota = 20
        self.full = False
        """No node has room."""
        self.image_trouble = ""
        """What every container waits for in vain."""
        self.measured = True
        """Whether there is a metrics server."""
        self.stubborn = False
        self.hanging: set[str] = set()
        """What is never answered: `{"POST pods"}`."""
        self.failing: dict[str, tuple[int, str, str]] = {}
        """Answers to force: `{"POST secrets": (500, "InternalError", "no store")}`."""
        self.rules = [
            rule
            for part in yaml.safe_load_all(ROLE.read_text())
            if part["kind"] == "Role" and part["metadata"]["namespace"] == NAMESPACE
            for rule in part["rules"]
        ]
        self._token = "account-token"
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, and write the service account's folder."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate())
        (self.account / "token").write_text(self._token)
        (self.account / "namespace").write_text(NAMESPACE)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """End, with all pods and connections."""
        for name in list(self.pods):
            await self._gone(name)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    def instances(self) -> set[str]:
        """List the instances that there are."""
        return {pod["metadata"]["labels"].get("retinue.instance", "") for pod in self.pods.values()}

    async def kill(self, instance_id: str) -> None:
        """Let a pod's process die."""
        for name, pod in self.pods.items():
            if pod["metadata"]["labels"]["retinue.instance"] == instance_id:
                pod["status"]["phase"] = "Failed"
                state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
                pod["status"]["containerStatuses"] = [{"name": "instance", "state": state}]
                await self.running[name].end()

    def renew_token(self) -> None:
        """Give the service account another token; the former one is good no longer."""
        self._token = uuid.uuid4().hex
        (self.account / "token").write_text(self._token)

    def _certificate(self) -> Path:
        """Make a key and its certificate for 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        plain = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
        (self.account / "ca.crt").write_bytes(pem)
        both = self.account / "server.pem"
        both.write_bytes(pem + key.private_bytes(serialization.Encoding.PEM, plain[1], plain[0]))
        return both

    async def _serve(self, request: web.Request) -> web.Response:
        try:
            if request.headers.get("Authorization") != f"Bearer {self._token}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            value, code = await self._answer(request)
            return web.json_response(value, status=code)
        except Refused as refused:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": refused.reason}
            return web.json_response({**status, "message": str(refused), "code": refused.code}, status=refused.code)

    async def _answer(self, request: web.Request) -> tuple[Any, int]:
        group, _, path = request.path.lstrip("/").partition(f"/namespaces/{NAMESPACE}/")
        kind, _, name = path.partition("/")
        if not kind:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        deed = f"{request.method} {kind}"
        self._authorize(request.method, group, kind, name)
        if deed in self.hanging:
            await asyncio.Event().wait()
        if deed in self.failing:
            raise Refused(*self.failing[deed])
        if group == "apis/metrics.k8s.io/v1beta1":
            return self._metrics(name)
        assert group == "api/v1"
        if request.method == "POST":
            return self._create(kind, await request.json()), 201
        if request.method == "DELETE":
            return await self._delete(name, await request.json()), 200
        return (self._find(name), 200) if name else (self._list(dict(request.query)), 200)

    def _authorize(self, method: str, group: str, kind: str, name: str) -> None:
        verb = {"POST": "create", "DELETE": "delete", "GET": "get" if name else "list"}[method]
        api_group = group.split("/")[1] if group.startswith("apis/") else ""
        for rule in self.rules:
            if api_group in rule["apiGroups"] and kind in rule["resources"] and verb in rule["verbs"]:
                return
        raise Refused(403, "Forbidden", f'{kind} is forbidden: cannot {verb} resource "{kind}" in API group ""')

    def _find(self, name: str) -> dict:
        if name not in self.pods:
            raise Refused(404, "NotFound", f'pods "{name}" not found')
        return self.pods[name]

    def _list(self, query: dict) -> dict:
        terms = [term.partition("=") for term in query.get("labelSelector", "").split(",") if term]
        found = [
            pod
            for pod in self.pods.values()
            if all(
                name in pod["metadata"]["labels"] and (not sign or pod["metadata"]["labels"][name] == value)
                for name, sign, value in terms
            )
        ]
        return {"kind": "PodList", "apiVersion": "v1", "items": found[: int(query.get("limit", 500))]}

    def _metrics(self, name: str) -> tuple[Any, int]:
        if not self.measured:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        self._find(name)
        return {"kind": "PodMetrics", "containers": [{"name": "instance", "usage": {"memory": "800Mi"}}]}, 200

    def _create(self, kind: str, wanted: dict) -> dict:
        strict(wanted, SHAPES[kind])
        kept = {"pods": self.pods, "secrets": self.secrets}[kind]
        metadata = wanted["metadata"]
        if metadata["name"] in kept:
            raise Refused(409, "AlreadyExists", f'{kind} "{metadata["name"]}" already exists')
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if kind == "pods":
            self._admit(wanted)
            wanted["status"] = {"phase": "Pending", "conditions": []}
            self._spawn(self._be_node(metadata["name"]))
        kept[metadata["name"]] = json.loads(json.dumps(wanted)) if kind == "secrets" else wanted
        return wanted

    def _admit(self, pod: dict) -> None:
        if len(self.pods) >= self.quota:
            raise Refused(403, "Forbidden", "pods is forbidden: exceeded quota: instances, requested: pods=1")
        spec, name = pod["spec"], pod["metadata"]["name"]
        security = [one.get("securityContext", {}) for one in spec["containers"]]
        restricted = (
            spec["securityContext"].get("runAsNonRoot")
            and spec["securityContext"].get("seccompProfile", {}).get("type") == "RuntimeDefault"
            and all(one.get("allowPrivilegeEscalation") is False for one in security)
            and all(one.get("capabilities", {}).get("drop") == ["ALL"] for one in security)
        )
        if not restricted:
            raise Refused(403, "Forbidden", f'pods "{name}" is forbidden: violates PodSecurity "restricted:latest"')

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _be_node(self, name: str) -> None:
        """Schedule a pod, wait for the secret that it mounts, and run it."""
        await asyncio.sleep(0)
        pod = self.pods[name]
        status = pod["status"]
        if self.full:
            reason = {"reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory."}
            status["conditions"] = [{"type": "PodScheduled", "status": "False", **reason}]
            return
        address = POD_ADDRESS.format(random.randrange(1, 255), random.randrange(1, 255))
        waiting = {"reason": self.image_trouble or "ContainerCreating"}
        status["containerStatuses"] = [{"name": "instance", "state": {"waiting": waiting}}]
        if self.image_trouble:
            return
        mounted = next(volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume)
        while mounted not in self.secrets:
            await asyncio.sleep(0.01)
        config = base64.b64decode(next(iter(self.secrets[mounted]["data"].values())))
        instance = self.running[name] = PretendInstance(stubborn=self.stubborn)
        port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        await instance.begin(config, socket.create_server((address, port)))
        status.update(phase="Running", podIP=address)
        status["containerStatuses"] = [{"name": "instance", "state": {"running": {"startedAt": "now"}}}]

    async def _delete(self, name: str, options: dict) -> dict:
        pod = self._find(name)
        strict(options, OPTIONS)
        grace = options["gracePeriodSeconds"]
        instance = self.running.get(name)
        if grace == 0 or instance is None:
            await self._gone(name)
        elif "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = "now"
            self._spawn(self._leave(name, grace if instance.stubborn else 0))
        return pod

    async def _leave(self, name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._gone(name)

    async def _gone(self, name: str) -> None:
        """A pod is gone, and what belongs to it."""
        pod = self.pods.pop(name, None)
        with suppress(KeyError):
            await self.running.pop(name).end()
        if pod is not None:
            uid = pod["metadata"]["uid"]
            for secret in list(self.secrets.values()):
                if any(owner["uid"] == uid for owner in secret["metadata"].get("ownerReferences", ())):
                    del self.secrets[secret["metadata"]["name"]]
