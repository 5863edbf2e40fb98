"""Renders the contract: Python stubs with their types into proto/gen, and Envoy's descriptor set into gateway/envoy."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GEN = ROOT / "proto" / "gen"
EDGE_DESCRIPTOR = ROOT / "gateway" / "src" / "retinue_gateway" / "edge.binpb"
# Envoy renders error details only if their types are in the set that it is given.
EDGE_FILES = ["retinue/edge/v1/edge_service.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"]


def protoc(*arguments: str) -> None:
    """Run the compiler of grpcio-tools on the contract; raises CalledProcessError with its own output shown."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", "-Ithird_party", *arguments]
    subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    """Write all renderings; what is no longer in the contract disappears."""
    ours = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto" / "retinue").rglob("*.proto"))
    services = [p for p in ours if p.endswith("_service.proto")]
    with tempfile.TemporaryDirectory() as out:
        protoc(f"--python_out={out}", f"--mypy_out=quiet:{out}", *ours, "buf/validate/validate.proto")
        protoc(f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet,only_async:{out}", *services)
        for package in ("retinue", "buf"):
            shutil.rmtree(GEN / package, ignore_errors=True)
            shutil.copytree(Path(out) / package, GEN / package)
            (GEN / package / "py.typed").touch()
    EDGE_DESCRIPTOR.parent.mkdir(parents=True, exist_ok=True)
    protoc("--include_imports", f"--descriptor_set_out={EDGE_DESCRIPTOR}", *EDGE_FILES)


if __name__ == "__main__":
    main()
