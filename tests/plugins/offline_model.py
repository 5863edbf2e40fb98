"""The bundled offline model as a fixture. A conftest that wants it loads this file by its path (see tests/contract)."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

TIMEOUT_S = 10.0


class OfflineModel:
    """A running offline model: `base_url` for adapters, `stats()` and `requests()` for judging."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.origin}/v1"

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.origin + path, timeout=TIMEOUT_S) as response:
            return json.load(response)

    def stats(self) -> dict[str, int]:
        """Count requests, those open now, and those whose client left before the end."""
        return self._get("/_stats")

    def requests(self) -> list[dict[str, Any]]:
        """Show the latest requests, oldest first: body, names of headers, traceparent."""
        return self._get("/_requests")

    def requests_of(self, text: str) -> list[dict[str, Any]]:
        """Show the latest requests whose last message holds a text."""
        return [found for found in self.requests() if text in found["body"]["messages"][-1]["content"]]


@pytest.fixture(scope="session")
def offline_model() -> Iterator[OfflineModel]:
    """Run an offline model that records its requests."""
    argv = [sys.executable, "-m", "retinue_local.offline_model", "--port", "0", "--record"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield OfflineModel(int(process.stdout.readline()))
        finally:
            process.terminate()
