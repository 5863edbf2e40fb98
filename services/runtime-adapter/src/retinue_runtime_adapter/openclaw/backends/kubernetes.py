"""Instances as pods of a Kubernetes cluster, over the API server, with a service account that may do just that.

A pod is made, then a secret with its configuration that belongs to it: the pod waits for the secret, and the secret
goes when the pod goes. The pod meets the "restricted" Pod Security Standard and has no service account's token.
"""

import asyncio
import base64
import os
import ssl
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends import contained
from retinue_runtime_adapter.openclaw.backends.api import Answer, Api
from retinue_runtime_adapter.openclaw.backends.contained import unavailable
from retinue_runtime_adapter.openclaw.backends.quantities import quantity
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Process

BEGIN_TIMEOUT_S = 120.0
"""For a pod to run: for a node to be chosen, the image to be fetched there and the container to be made."""

FORCE_TIMEOUT_S = 5.0
"""Beyond its grace, for a pod to be gone before it is removed by force."""

ACCOUNT_FILE_MAX_BYTES = 64 * 1024
"""Bytes of a service account's file."""

CPU_REQUEST_COUNT = 0.25
"""Processors kept for a pod: an idle gateway takes a hundredth of one, a turn most of one for a moment."""

CONFIG_FOLDER = "/etc/retinue"
"""Where the secret is mounted."""

CONFIG_KEY = "openclaw.json"

CONTAINER = "instance"

HOPELESS = {
    "ErrImagePull": "The cluster cannot fetch the image {image}.",
    "ImagePullBackOff": "The cluster cannot fetch the image {image}.",
    "ErrImageNeverPull": "A node has no image {image}.",
    "InvalidImageName": "The name of the image {image} is not valid.",
    "CreateContainerConfigError": "The cluster cannot make an instance's container.",
    "CreateContainerError": "The cluster cannot make an instance's container.",
    "RunContainerError": "The cluster cannot run an instance's container.",
}
"""What a container may be waiting for in vain, and how it is told."""

SERVER = "The cluster's API server"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(ACCOUNT_FILE_MAX_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        raise unavailable(f"The service account has no readable {path.name}.", str(path)) from None


def _server(settings: Settings) -> str:
    """Where the API server is: as set, or as the cluster tells its pods."""
    if settings.openclaw_kubernetes_url:
        return settings.openclaw_kubernetes_url
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise unavailable("RETINUE_OPENCLAW_KUBERNETES_URL is not set, and this process runs in no pod.")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _refusal(answer: Answer, what: str) -> RetinueError:
    """Say why the API server did not do something."""
    words = str(answer.body.get("message", "")).lower()
    if answer.status == 401:
        return unavailable("The cluster does not accept the service account's token.", answer.message)
    if answer.status == 403 and "quota" in words:
        return unavailable("The namespace's quota has no room for another instance.", answer.message)
    if answer.status == 403 and "podsecurity" in words.replace(" ", ""):
        return unavailable("The namespace's pod security does not admit an instance.", answer.message)
    if answer.status == 403:
        return unavailable(f"The service account may not {what}; see the role that it needs.", answer.message)
    if answer.status == 404:
        return unavailable("The cluster has no such namespace.", answer.message)
    if answer.status in (429, 503):
        return unavailable(f"{SERVER} is too busy.", answer.message)
    return unavailable(f"{SERVER} refused to {what}.", answer.message)


class KubernetesBackend:
    """Begins and ends pods."""

    name = "kubernetes"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._account = Path(settings.openclaw_kubernetes_account_dir)
        self._owner = contained.owner(settings, of_folder=False)
        self._instances: dict[str, Process] = {}
        self._api: Api | None = None
        self._namespace = ""

    async def prepare(self) -> None:
        """Find the cluster, check what the service account may do, and remove what former processes left.

        Raises RUNTIME_UNAVAILABLE, and may then be tried again.
        """
        contained.check(self._settings)
        if self._api is None:
            self._namespace = self._settings.openclaw_kubernetes_namespace or _read(self._account / "namespace")
            context = await asyncio.to_thread(self._trust)
            self._api = Api(SERVER, _server(self._settings), aiohttp.TCPConnector(ssl=context), self._credential)
        await self._sweep()

    def _trust(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        except OSError as error:  # ssl.SSLError is one
            raise unavailable("The service account has no readable ca.crt.", repr(error)) from None

    def _credential(self) -> Mapping[str, str]:
        # The cluster renews it in place every hour.
        return {"Authorization": f"Bearer {_read(self._account / 'token')}"}

    async def _call(self, method: str, kind: str, name: str = "", **options: Any) -> Answer:
        if self._api is None:
            raise unavailable(f"{SERVER} has not been asked yet.")
        path = f"/api/v1/namespaces/{self._namespace}/{kind}"
        return await self._api.call(method, f"{path}/{name}" if name else path, **options)

    async def _sweep(self) -> None:
        """Remove all of this owner's, which only a former process can have begun, and what of any owner has ended."""
        known = {process.detail["name"] for process in self._instances.values()}
        params = {"labelSelector": contained.INSTANCE_LABEL, "limit": str(contained.LISTED_MAX)}
        mine = {**params, "labelSelector": f"{contained.INSTANCE_LABEL},{contained.OWNER_LABEL}={self._owner}"}
        before = time.time() - contained.ENDED_AGE_S
        found: list[str] = []
        for query in (mine, params):
            answer = await self._call("GET", "pods", params=query)
            if answer.status != 200:
                raise _refusal(answer, "list pods")
            for pod in answer.body.get("items") or ():
                if query is mine or (_has_ended(pod) and _created(pod) < before):
                    found.append(pod["metadata"]["name"])
        await contained.remove_all([one for one in dict.fromkeys(found) if one not in known], self._kill)

    def _wanted(self, spec: InstanceSpec, name: str) -> dict[str, Any]:
        """Describe the pod."""
        memory = f"{contained.memory_mib(spec)}Mi"
        variables = contained.environment(spec, {"RETINUE_CONFIG_FILE": f"{CONFIG_FOLDER}/{CONFIG_KEY}"})
        cpu_count = self._settings.openclaw_cpu_count
        container = {
            "name": CONTAINER,
            "image": self._settings.openclaw_image,
            "env": [{"name": variable, "value": value} for variable, value in variables.items()],
            "ports": [{"name": "relay", "containerPort": contained.RELAY_PORT, "protocol": "TCP"}],
            "resources": {
                "requests": {"cpu": f"{round(min(cpu_count, CPU_REQUEST_COUNT) * 1000)}m", "memory": memory},
                "limits": {"cpu": f"{round(cpu_count * 1000)}m", "memory": memory},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
                "readOnlyRootFilesystem": True,
            },
            "volumeMounts": [
                {"name": "state", "mountPath": contained.STATE_FOLDER},
                {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - inside the container
                {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            ],
        }
        pod_spec: dict[str, Any] = {
            "automountServiceAccountToken": False,
            "containers": [container],
            "enableServiceLinks": False,
            "restartPolicy": "Never",
            "securityContext": {
                "fsGroup": contained.USER,
                "runAsGroup": contained.USER,
                "runAsNonRoot": True,
                "runAsUser": contained.USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "shareProcessNamespace": True,  # its pause process reaps what the gateway's children leave behind
            "volumes": [
                {"name": "state", "emptyDir": {"medium": "Memory", "sizeLimit": f"{contained.STATE_MIB}Mi"}},
                {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": f"{contained.SCRATCH_MIB}Mi"}},
                {"name": "config", "secret": {"secretName": name, "defaultMode": 0o400}},
            ],
        }
        if self._settings.openclaw_container_runtime:
            pod_spec["runtimeClassName"] = self._settings.openclaw_container_runtime
        metadata = {"name": name, "labels": contained.labels(spec.instance_id, self._owner)}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec}

    async def begin(self, spec: InstanceSpec) -> Process:
        """Begin a pod, wait until it runs and answer its address. Raises RUNTIME_UNAVAILABLE; then nothing is left."""
        name = contained.name_of(spec.instance_id)
        config, wanted = contained.configuration(spec), self._wanted(spec, name)
        try:
            answer = await self._call("POST", "pods", body=wanted)
            if answer.status != 201:
                raise _refusal(answer, "make pods")
            await self._tell(spec, name, str(answer.body["metadata"]["uid"]), config)
            address = await self._running(name)
        except BaseException:
            await self._discard(name)
            raise
        process = Process(spec.instance_id, address, {"name": name})
        self._instances[spec.instance_id] = process
        return process

    async def _discard(self, name: str) -> None:
        try:
            await self._kill(name)
        except RetinueError:
            return  # the server is away: the next start removes it, and without an adapter it ends itself

    async def _tell(self, spec: InstanceSpec, name: str, uid: str, config: bytes) -> None:
        """Give the pod its configuration, as a secret that goes with it."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "labels": contained.labels(spec.instance_id, self._owner),
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}],
            },
            "type": "Opaque",
            "immutable": True,
            "data": {CONFIG_KEY: base64.b64encode(config).decode()},
        }
        answer = await self._call("POST", "secrets", body=secret)
        if answer.status != 201:
            raise _refusal(answer, "make secrets")

    async def _running(self, name: str) -> str:
        """Wait until the pod runs; answers its address."""
        end = time.monotonic() + BEGIN_TIMEOUT_S
        pod: dict[str, Any] = {}
        while time.monotonic() < end:
            answer = await self._call("GET", "pods", name)
            if answer.status == 404:
                raise unavailable("The instance's pod was removed before it ran.")
            if answer.status == 200:
                pod = answer.body.get("status") or {}
                self._check_hope(pod)
                container = _container(pod)
                if pod.get("podIP") and "running" in container.get("state", {}):
                    return contained.joined(pod["podIP"], contained.RELAY_PORT)
            await asyncio.sleep(contained.POLL_S)
        for condition in pod.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
                raise unavailable("No node of the cluster has room for an instance.", str(condition.get("message")))
        raise unavailable("The instance's pod did not run in time.", str(pod.get("phase")))

    def _check_hope(self, pod: Mapping[str, Any]) -> None:
        """Raise RUNTIME_UNAVAILABLE if this pod will never run."""
        if pod.get("phase") in ("Succeeded", "Failed"):
            raise unavailable("The instance's pod ended at once.", f"{pod.get('reason')}: {pod.get('message')}")
        waiting = _container(pod).get("state", {}).get("waiting") or {}
        if sentence := HOPELESS.get(waiting.get("reason", "")):
            raise unavailable(
                sentence.format(image=self._settings.openclaw_image), f"{waiting['reason']}: {waiting.get('message')}"
            )

    async def is_alive(self, process: Process) -> bool:
        """Whether the pod is to run, and has not ended. Raises RUNTIME_UNAVAILABLE if the server does not say."""
        answer = await self._call("GET", "pods", process.detail["name"])
        if answer.status not in (200, 404):
            raise _refusal(answer, "read pods")
        # What is not there is described too, by an object with a status of another kind.
        pod = answer.body if answer.status == 200 else {}
        alive = bool(pod) and not pod.get("metadata", {}).get("deletionTimestamp") and not _has_ended(pod)
        if not alive:
            process.detail["end"] = f"its pod ended{_why(pod)}."
        return alive

    async def memory_bytes(self, process: Process) -> int:
        """Memory of the pod as the cluster measured it last, up to a minute ago; 0 if nobody measures."""
        if self._api is None:
            return 0
        path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{self._namespace}/pods/{process.detail['name']}"
        try:
            answer = await self._api.call("GET", path)
        except RetinueError:
            return 0
        if answer.status != 200:
            return 0
        return sum(quantity(one.get("usage", {}).get("memory", "0")) for one in answer.body.get("containers") or ())

    async def end(self, process: Process, grace_s: float) -> None:
        """Delete the pod, by force after the grace, and wait until it is gone; its secret goes with it."""
        name = process.detail["name"]
        grace = contained.whole_seconds(grace_s)
        try:
            if grace > 0 and await self._delete(name, grace):
                await self._gone(name, grace + FORCE_TIMEOUT_S)
        finally:
            await self._kill(name)
        self._instances.pop(process.instance_id, None)

    async def _delete(self, name: str, grace: int) -> bool:
        """Ask for a pod's end; False if there is none."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace}
        answer = await self._call("DELETE", "pods", name, body=options)
        if answer.status not in (200, 202, 404):
            raise _refusal(answer, "delete pods")
        return answer.status != 404

    async def _gone(self, name: str, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while (await self._call("GET", "pods", name)).status != 404:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(contained.POLL_S)
        return True

    async def _kill(self, name: str) -> None:
        """Remove a pod without grace. Raises RUNTIME_UNAVAILABLE if it stays."""
        if await self._delete(name, 0) and not await self._gone(name, contained.GONE_TIMEOUT_S):
            raise unavailable("The instance's pod did not go away.")

    def forget(self) -> list[Process]:
        """Answer the instances and leave them to the next process of this owner."""
        instances = list(self._instances.values())
        self._instances.clear()
        return instances

    async def close(self) -> None:
        """End every instance, and let go of the cluster."""
        ends = (self.end(process, contained.CLOSE_GRACE_S) for process in self.forget())
        try:
            # What cannot be ended now ends itself, or is removed by the next process.
            await asyncio.gather(*ends, return_exceptions=True)
        finally:
            if self._api is not None:
                await self._api.close()
                self._api = None


def _container(pod: Mapping[str, Any]) -> dict[str, Any]:
    found = pod.get("containerStatuses") or ()
    return next((one for one in found if one.get("name") == CONTAINER), {})


def _has_ended(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _why(pod: Mapping[str, Any]) -> str:
    """Why a pod ended, in the cluster's one word for it, such as OOMKilled or Evicted."""
    status = pod.get("status") or {}
    word = status.get("reason") or _container(status).get("state", {}).get("terminated", {}).get("reason")
    return f": {word}" if word else ""


def _created(pod: Mapping[str, Any]) -> float:
    """When a pod was made, in seconds since the epoch; long ago if it does not say."""
    try:
        return datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()
    except (KeyError, ValueError):
        return 0.0
