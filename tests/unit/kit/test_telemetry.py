"""What a process writes to its log is JSON, a line each, whoever says it."""

import json
import subprocess
import sys

TALK = """
import logging
import structlog
from retinue_kit import telemetry

telemetry.set_up("router", {})
library = logging.getLogger("asyncpg.pool")
try:
    raise ConnectionRefusedError("no Postgres")
except ConnectionRefusedError:
    library.exception("Failed to restore the pool connection floor of %d", 2)
library.info("connected")
structlog.get_logger().warning("ours", count=1)
"""


def test_what_a_library_says_with_a_traceback_is_one_line_of_json_like_our_own():
    spoken = subprocess.run([sys.executable, "-c", TALK], capture_output=True, text=True, timeout=60, check=True)
    theirs, ours = (json.loads(line) for line in spoken.stderr.splitlines())  # below a warning they are not heard
    assert theirs["event"] == "Failed to restore the pool connection floor of 2"
    assert (theirs["level"], theirs["logger"], theirs["service"]) == ("error", "asyncpg.pool", "router")
    assert "ConnectionRefusedError: no Postgres" in theirs["exception"]
    assert theirs.keys() - {"logger", "exception"} == ours.keys() - {"count"}
