"""What a box's Sandbox object says, made by a pure function: a pod that may only compute on a tenant's files.

It is a Sandbox, not a claim on a warm pool: a claim's volumes are always new ones, and a pod that is warm has been
given its volumes before anybody knows whose it will be.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from retinue_kit.config import SettingError

from retinue_sandbox.ports import Isolation, Workspace

GROUP = "agents.x-k8s.io"
VERSION = "v1beta1"
"""Of kubernetes-sigs/agent-sandbox 0.5."""

NAME_LABEL = "app.kubernetes.io/name"
NAME = "retinue-box"
OWNER_LABEL = "retinue.owner"
TENANT_LABEL = "retinue.tenant"

LIFE_MAX_S = 6 * 3600
"""A box is removed by the cluster after so long, should nobody else do it."""

TMP_MIB = 64
"""Room of /tmp, in memory."""

DISK_MIB = 64
"""Room of logs and of whatever else is written outside of volumes."""

CPU_REQUEST_COUNT = 0.1
"""Processors kept for a box: it waits for a model most of the time."""

FOLDER = "/opt/retinue"
"""Where the image has the agent and `entry.py`."""

_TENANT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Options:
    """What pods are like in this deployment."""

    image: str
    runtime_class: str
    """Name of the RuntimeClass that is behind `isolation`."""
    isolation: Isolation = Isolation.GVISOR
    volume_claim: str = "retinue-workspaces"
    """The claim on the volume, in the pods' namespace, that the service has mounted as its workspaces."""
    cpu_count: float = 1.0
    memory_mib: int = 1024
    """Of all that runs in a box, with /tmp."""

    def __post_init__(self) -> None:
        """Refuse what would make no wall. Raises SettingError."""
        if not self.image:
            raise SettingError("RETINUE_POD_IMAGE is not set: it names the image of a box.")
        if not self.runtime_class or self.isolation is Isolation.NAMESPACE:
            raise SettingError("RETINUE_POD_RUNTIME_CLASS must name a class of gVisor's or of virtual machines.")


def sandbox(
    options: Options, workspace: Workspace, name: str, owner: str, token_digest: str, now: datetime
) -> dict[str, Any]:
    """Describe a box. Raises ValueError for a tenant whose name or user makes no box of its own."""
    if not _TENANT.fullmatch(workspace.tenant_id):
        raise ValueError("a tenant's id must be fit for a path and a label")
    if workspace.uid < 1:
        raise ValueError("a box would run as root")
    labels = {NAME_LABEL: NAME, OWNER_LABEL: owner, TENANT_LABEL: workspace.tenant_id}
    end = (now + timedelta(seconds=LIFE_MAX_S)).astimezone(UTC)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Sandbox",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "podTemplate": {"metadata": {"labels": labels}, "spec": _pod(options, workspace, token_digest)},
            "service": False,
            "shutdownTime": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "shutdownPolicy": "Delete",
        },
    }


def _pod(options: Options, workspace: Workspace, token_digest: str) -> dict[str, Any]:
    return {
        "activeDeadlineSeconds": LIFE_MAX_S,
        "automountServiceAccountToken": False,
        "containers": [_container(options, workspace, token_digest)],
        # Names are not looked up: there is no server of them.
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "enableServiceLinks": False,
        "hostUsers": False,
        "hostname": "box",
        "restartPolicy": "Never",
        "runtimeClassName": options.runtime_class,
        "securityContext": {
            "runAsGroup": workspace.uid,
            "runAsNonRoot": True,
            "runAsUser": workspace.uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 0,
        "volumes": [
            {"name": "workspaces", "persistentVolumeClaim": {"claimName": options.volume_claim}},
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": f"{TMP_MIB}Mi"}},
        ],
    }


def _container(options: Options, workspace: Workspace, token_digest: str) -> dict[str, Any]:
    memory, disk = f"{options.memory_mib}Mi", f"{DISK_MIB}Mi"
    return {
        "name": "box",
        "image": options.image,
        "command": ["/usr/bin/python3", "-I", "-S", f"{FOLDER}/entry.py", f"{FOLDER}/agent.py"],
        "env": [
            {"name": "RETINUE_TOKEN_DIGEST", "value": token_digest},
            {"name": "HOME", "value": "/workspace"},
            {"name": "LANG", "value": "C.UTF-8"},
            {"name": "PATH", "value": "/usr/local/bin:/usr/bin:/bin"},
            {"name": "TZ", "value": "UTC"},
        ],
        "resources": {
            "requests": {"cpu": f"{round(CPU_REQUEST_COUNT * 1000)}m", "memory": memory, "ephemeral-storage": disk},
            "limits": {"cpu": f"{round(options.cpu_count * 1000)}m", "memory": memory, "ephemeral-storage": disk},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            # Its own tenant's files and nothing above them.
            {"name": "workspaces", "mountPath": "/workspace", "subPath": f"{workspace.tenant_id}/files"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the box's own
        ],
        "workingDir": "/workspace",
    }
