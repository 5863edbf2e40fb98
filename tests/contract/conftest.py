"""Fixtures of the contract tests."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_path = Path(__file__).parents[1] / "plugins" / "offline_model.py"
_spec = importlib.util.spec_from_file_location("offline_model_fixtures", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

offline_model = _module.offline_model

STOP_TIMEOUT_S = 40


@pytest.fixture(scope="session")
def openclaw_adapter(openclaw_dir: Path, offline_model: Any) -> Iterator[str]:
    """Run a runtime adapter with a real gateway as its own process; answers its address."""
    with tempfile.TemporaryDirectory(prefix="rt-claw-") as folder:
        address = f"unix:{folder}/adapter.sock"
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "OPENAI_", "OTEL_"))} | {
            "RETINUE_ADDRESS": address,
            "RETINUE_RUNTIMES": "openclaw",
            "RETINUE_MODEL_BASE_URL": offline_model.base_url,
            "RETINUE_OPENCLAW_DIR": str(openclaw_dir),
            "RETINUE_OPENCLAW_STATE_DIR": f"{folder}/instances",
            "RETINUE_OPENCLAW_ORPHAN_S": "0.2",
        }
        with (Path(folder) / "log").open("wb") as log:
            command = [sys.executable, "-m", "retinue_runtime_adapter"]
            process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield address
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
            sys.stdout.write((Path(folder) / "log").read_text(errors="replace")[-20_000:])
