"""What an operator may set."""

from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from retinue_kit.config import SettingError, check_bounds

from retinue_policy.domain.snapshot import KNOWN_RUNTIMES, PLANS

ATTEMPTS_MAX = 3
"""A worker gives no run more."""


BEFORE_TOOL_CALL_TIMEOUT_MAX_S = 4.0
"""Whoever asks policy about a call waits for 5 s."""


class Settings(msgspec.Struct, frozen=True):
    """Read from RETINUE_<NAME>."""

    address: str
    """Where to listen: unix:/path or host:port."""

    directory_address: str
    """The directory service."""

    redis_url: str
    """Where breakers are kept."""

    runtimes: str = "light"
    """Runtimes that are switched on, separated by commas, the one to fall back to first."""

    sticky_window_s: float = 900.0
    """A session keeps its runtime if it used it no longer ago than this, where the rules for runtimes do not say."""

    concurrent_run_count: int = 64
    """Runs of a tenant at once, where the tenant has no setting of its own."""

    attempt_count: int = 3
    """Attempts a run may have where its runtime fails, 1 to 3; lost processes count up to 3 anyway."""

    run_time_s: float = 600.0
    """Time an attempt may take."""

    output_size_bytes: int = 1024 * 1024
    """Bytes of text a run may produce."""

    runtime_adapter_address: str = ""
    """The runtime-adapter, which is asked what can take runs; empty: what is on is taken to be there."""

    cell_plans: str = "pro,team,enterprise"
    """Plans whose tenants share no runtime process with others, separated by commas."""

    policy_dir: str = ""
    """Folder of the rules: runtimes.toml, tools.toml and *.cedar; empty: those that come with the program."""

    before_tool_call_url: str = ""
    """Asked about each tool call that the rules do not deny, http:// or https://; empty: nobody is."""

    before_tool_call_timeout_s: float = 2.0
    """Time for its answer, up to 4 s, since runtimes wait 5 s for policy; no answer is a denial."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.runtimes_on if name not in KNOWN_RUNTIMES]
        if unknown or not self.runtimes_on:
            raise SettingError(f"RETINUE_RUNTIMES={self.runtimes!r} must name some of: {', '.join(KNOWN_RUNTIMES)}.")
        for name in ("concurrent_run_count", "attempt_count", "run_time_s", "output_size_bytes"):
            if getattr(self, name) <= 0:
                raise SettingError(f"RETINUE_{name.upper()} must be more than 0.")
        strange = sorted(self.plans_with_cells.difference(PLANS))
        if strange:
            raise SettingError(f"RETINUE_CELL_PLANS={self.cell_plans!r} must name some of: {', '.join(PLANS)}.")
        if self.policy_dir and not Path(self.policy_dir).is_dir():
            raise SettingError(f"RETINUE_POLICY_DIR={self.policy_dir!r} is no folder.")
        url = self.before_tool_call_url
        if url and not _is_endpoint(url):  # which is not told: it may hold a password
            raise SettingError("RETINUE_BEFORE_TOOL_CALL_URL must be a URL with http:// or https:// and a host.")
        check_bounds(self, {"before_tool_call_timeout_s": (0.05, BEFORE_TOOL_CALL_TIMEOUT_MAX_S)})
        if self.attempt_count > ATTEMPTS_MAX:
            raise SettingError(f"RETINUE_ATTEMPT_COUNT must be at most {ATTEMPTS_MAX}.")

    @property
    def runtimes_on(self) -> tuple[str, ...]:
        """The runtimes, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.runtimes.split(",") if name.strip()))

    @property
    def plans_with_cells(self) -> frozenset[str]:
        """The plans; none if the setting is "," alone."""
        return frozenset(name.strip() for name in self.cell_plans.split(",") if name.strip())


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
