"""A box as a pod: what the cluster is told, held to the published schema, and whom the pod lets talk."""

import hashlib
import json
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from retinue_kit.config import SettingError
from retinue_sandbox.bwrap.backend import AGENT
from retinue_sandbox.pod import entry, manifest
from retinue_sandbox.ports import Isolation, Workspace

TOP = Path(__file__).parents[3]
SCHEMA = json.loads((TOP / "tests/fixtures/agent_sandbox/sandbox.v1beta1.json").read_text())
OPTIONS = manifest.Options("retinue/box", "gvisor")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def described(tenant_id: str = "ten_a", uid: int = 700_001) -> dict[str, Any]:
    """A box's object."""
    return manifest.sandbox(OPTIONS, Workspace(tenant_id, -1, uid), "box-1", "owner", "digest", NOW)


def test_a_box_is_what_the_published_schema_allows() -> None:
    jsonschema.validate(described(), SCHEMA)
    wrong = described()
    wrong["spec"]["podTemplate"]["spec"]["hostNetwrk"] = True
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_a_box_may_do_nothing_but_compute_on_its_tenants_files() -> None:
    spec = described()["spec"]
    pod = spec["podTemplate"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is pod["hostUsers"] is pod["enableServiceLinks"] is False
    assert pod["runtimeClassName"] == "gvisor"
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 700_001
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False,
        "readOnlyRootFilesystem": True,
    }  # fmt: skip
    assert set(container["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}
    assert {mount["mountPath"]: mount.get("subPath") for mount in container["volumeMounts"]} == {
        "/workspace": "ten_a/files", "/tmp": None,
    }  # fmt: skip
    assert (spec["shutdownTime"], spec["shutdownPolicy"]) == ("2026-01-01T06:00:00Z", "Delete")


@pytest.mark.parametrize("tenant_id", ["", "..", ".", "a/b", "../ten_b", "a" * 64, "-a", "a\n", "ten_ä"])
def test_no_cross_tenant_by_a_name_that_is_a_path(tenant_id: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        described(tenant_id)
    with pytest.raises(ValueError, match="root"):
        described(uid=0)


def test_what_would_be_no_wall_is_refused() -> None:
    for options in (("", "gvisor"), ("image", "")):
        with pytest.raises(SettingError, match="RETINUE_POD"):
            manifest.Options(*options)
    with pytest.raises(SettingError, match="RETINUE_POD_RUNTIME_CLASS"):
        manifest.Options("image", "runc", Isolation.NAMESPACE)


def test_the_manifests_let_nothing_out_and_fit_what_the_service_makes() -> None:
    folder = TOP / "deploy/sandbox/kubernetes"
    parts = [part for path in sorted(folder.glob("*.yaml")) for part in yaml.safe_load_all(path.read_text())]
    by_kind = {part["kind"]: part for part in parts}
    policy = by_kind["NetworkPolicy"]["spec"]
    assert (policy["podSelector"], policy["egress"]) == ({}, [])
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert [port["port"] for port in policy["ingress"][0]["ports"]] == [entry.PORT]
    assert by_kind["PersistentVolumeClaim"]["metadata"]["name"] == OPTIONS.volume_claim
    assert by_kind["RuntimeClass"]["metadata"]["name"] == OPTIONS.runtime_class
    rules = by_kind["Role"]["rules"]
    assert [(rule["apiGroups"], rule["resources"]) for rule in rules] == [([manifest.GROUP], ["sandboxes"])]
    assert by_kind["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_image_holds_the_whole_agent() -> None:
    words = (TOP / "deploy/sandbox/Dockerfile").read_text().split()
    assert {f"bwrap/{path.name}" for path in AGENT} | {"pod/entry.py"} <= set(words)


def test_only_who_knows_the_token_is_let_in() -> None:
    token = "ab" * 32
    digest = hashlib.sha256(token.encode()).hexdigest()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found: list[socket.socket | None] = []
        waiting = threading.Thread(target=lambda: found.append(entry.admit(listening, digest, 10.0)))
        waiting.start()
        for said in (b"", b"cd" * 32, digest.encode()):
            with socket.create_connection(listening.getsockname()) as stranger:
                stranger.sendall(said)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
        with socket.create_connection(listening.getsockname()) as known:
            known.sendall(token.encode() + b"more")
            waiting.join(10.0)
            assert found[0] is not None
            with found[0] as admitted:
                assert admitted.recv(4) == b"more"  # what comes behind the token is the agent's


def test_bounded_wait_for_somebody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert entry.admit(listening, "", 0.01) is None
