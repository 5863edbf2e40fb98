"""What an operator may set."""

from typing import Literal

import msgspec
from retinue_kit.config import check_bounds

BOUNDS = {
    "box_uid_base": (1, 2_000_000_000),
    "box_uid_count": (1, 1_000_000),
    "box_idle_s": (1, 86_400),
    "boxes_max": (1, 10_000),
    "tenant_boxes_max": (1, 10_000),
    "tenant_executions_max": (1, 64),
    "spare_boxes_max": (0, 1000),
    "self_test_interval_s": (1, 86_400),
    "pod_cpu_count": (0.1, 64),
    "pod_memory_mib": (128, 65_536),
}
"""The least and the most of a number."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the process, each from RETINUE_ and its name in capitals."""

    address: str
    """Where to listen: `unix:/path` or `host:port`."""

    workspaces_dir: str = ""
    """Folder of the tenants' files; empty: there are none, and nothing is executed."""

    audit_dir: str = ""
    """Folder of the audit's files; empty: records are lines of the log."""

    bwrap_path: str = ""
    """Absolute path of the bubblewrap to make boxes with; empty: the system's, else the one of the package."""

    box_uid_base: int = 700_000
    """Where the service is root, the first of the users that boxes run as; each tenant has one of its own. They are
    nobody else's on this machine."""

    box_uid_count: int = 100_000
    """How many of them there are: as many tenants can have boxes."""

    box_backend: Literal["bwrap", "pod"] = "bwrap"
    """What makes boxes: bubblewrap on this machine, or a cluster that runs agent-sandbox."""

    pod_image: str = ""
    """Image of boxes that are pods; see deploy/sandbox."""

    pod_runtime_class: str = ""
    """Name of the cluster's RuntimeClass for them."""

    pod_isolation: Literal["gvisor", "microvm"] = "gvisor"
    """Which wall that class is."""

    pod_namespace: str = ""
    """Their namespace; empty: the service account's own."""

    pod_volume_claim: str = "retinue-workspaces"
    """The claim there on the volume that `workspaces_dir` is."""

    pod_cpu_count: float = 1.0
    """Processors that one of them may use."""

    pod_memory_mib: int = 1024
    """Memory that one of them may use, with its /tmp."""

    kubernetes_url: str = ""
    """Where the cluster's API server is; empty: where the cluster tells its pods."""

    kubernetes_account_dir: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    """Folder of the service account: `token`, `ca.crt`, `namespace`."""

    envoy_path: str = ""
    """Absolute path of the Envoy by which boxes reach what they may; empty: the system's, else the package's."""

    egress_dir: str = ""
    """Folder of that Envoy's files; empty: /run, or where temporary files are. Secrets lie there while it runs."""

    egress_secrets: str = ""
    """File of secrets that are put into requests of boxes on their way out; empty: there are none."""

    egress_ca_file: str = ""
    """Certificate authorities, as PEM, that the secrets' hosts are checked by; empty: the system's."""

    egress_private: str = ""
    """Networks with commas between them, as 10.1.0.0/16, that boxes may be granted though they are not public."""

    box_idle_s: float = 120.0
    """A session's box ends when nothing has run in it for so long. What it keeps outside of /workspace is lost then."""

    boxes_max: int = 256
    """Boxes at once. An idle one takes about 6 MiB."""

    tenant_boxes_max: int = 32
    """Boxes of one tenant at once."""

    tenant_executions_max: int = 8
    """Executions of one tenant at once."""

    spare_boxes_max: int = 16
    """Boxes made ahead, at most one of a kind, beside the others: who has needed two within 15 s finds the next one
    ready. 0: none."""

    self_test_interval_s: float = 600.0
    """How often it is tried out whether boxes hold."""

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)
