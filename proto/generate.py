"""Renders the contract: Python stubs with their types into proto/gen, and Envoy's descriptor set into the gateway.

With --check it writes nothing, and fails if what is committed is not what the contract renders to.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GEN = ROOT / "proto" / "gen"
PACKAGES = ("retinue", "buf")
EDGE_DESCRIPTOR = ROOT / "gateway" / "src" / "retinue_gateway" / "edge.binpb"
# Envoy renders error details only if their types are in the set that it is given.
EDGE_FILES = [
    "retinue/edge/v1/context_service.proto",
    "retinue/edge/v1/dead_letter_service.proto",
    "retinue/edge/v1/edge_service.proto",
    "retinue/edge/v1/file_service.proto",
    "retinue/edge/v1/instance_service.proto",
    "retinue/edge/v1/schedule_service.proto",
    "retinue/edge/v1/tool_service.proto",
    "retinue/edge/v1/webhook_service.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
]


def protoc(*arguments: str) -> None:
    """Run the compiler of grpcio-tools on the contract; raises CalledProcessError with its own output shown."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", "-Ithird_party", *arguments]
    # protoc looks for its plugins on the path; they are installed beside this Python.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    subprocess.run(command, cwd=ROOT, check=True, env=environ)


def render(out: Path) -> dict[Path, Path]:
    """Write all renderings into a folder; answers which file or folder of it belongs where."""
    ours = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto" / "retinue").rglob("*.proto"))
    services = [p for p in ours if p.endswith("_service.proto")]
    protoc(f"--python_out={out}", f"--mypy_out=quiet:{out}", *ours, "buf/validate/validate.proto")
    protoc(f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet,only_async:{out}", *services)
    for package in PACKAGES:
        (out / package / "py.typed").touch()
    descriptor = out / EDGE_DESCRIPTOR.name
    protoc("--include_imports", f"--descriptor_set_out={descriptor}", *EDGE_FILES)
    return {descriptor: EDGE_DESCRIPTOR, **{out / package: GEN / package for package in PACKAGES}}


def contents(place: Path) -> dict[str, bytes]:
    """Read a file, or all files of a folder, but for what Python leaves there."""
    files = place.rglob("*") if place.is_dir() else [place]
    return {str(f.relative_to(place)): f.read_bytes() for f in files if f.is_file() and f.suffix != ".pyc"}


def main() -> int:
    """Write all renderings, or check them; what is no longer in the contract disappears."""
    with tempfile.TemporaryDirectory() as out:
        places = render(Path(out))
        if "--check" in sys.argv[1:]:
            stale = [str(place.relative_to(ROOT)) for new, place in places.items() if contents(new) != contents(place)]
            if stale:
                sys.stderr.write(f"error: not what the contract renders to: {', '.join(stale)}; run: make gen\n")
            return 1 if stale else 0
        for new, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            if new.is_dir():
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(new, place)
            else:
                shutil.copy(new, place)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
