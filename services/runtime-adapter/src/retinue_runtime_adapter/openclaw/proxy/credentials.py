"""Credentials of gateways' agents: whose each is, and how one takes the place of another without anybody noticing."""

import hashlib
import secrets
from collections.abc import Container
from dataclasses import dataclass, field

PREFIX = "retinue-"
"""How a credential begins, so that one that leaked is recognised."""

SECRET_BYTES = 32

OVERLAP_S = 60.0
"""Seconds for which the former credential is good after its gateway has taken the next one: for what the gateway had
begun with it. Runs that were under way keep it until they end."""

Key = tuple[str, str]
"""Instance and tenant."""


@dataclass(slots=True)
class _Kept:
    """One agent's: three at most."""

    current: str = field(default_factory=lambda: PREFIX + secrets.token_urlsafe(SECRET_BYTES), repr=False)
    following: str = field(default="", repr=False)
    """The one that its gateway is being told, and may have heard of."""
    former: str = field(default="", repr=False)
    former_until: float = 0.0
    former_users: list[object] = field(default_factory=list)
    """Runs that began with the former one."""


class Credentials:
    """Of all instances. Found by digest: how long a search takes says something of the digest, and nothing of the
    secret.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, _Kept] = {}
        self._keys: dict[bytes, Key] = {}

    def make(self, key: Key) -> str:
        """Make, or answer, an agent's."""
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept()
            self._keys[_digest(kept.current)] = key
        return kept.current

    def renew(self, key: Key) -> str:
        """Make the next one, which is good beside the present one; asked again before `renewed`, answer the same."""
        self.make(key)
        kept = self._kept[key]
        if not kept.following:
            kept.following = _Kept().current
            self._keys[_digest(kept.following)] = key
        return kept.following

    def renewed(self, key: Key, users: list[object], now: float) -> None:
        """The gateway has the next one. The present one is good for OVERLAP_S, and until `users` are all over.

        Does nothing where there is no next one. `now` is of a clock that never goes back.
        """
        kept = self._kept.get(key)
        if kept is None or not kept.following:
            return
        self._drop_former(kept)
        kept.former, kept.former_until, kept.former_users = kept.current, now + OVERLAP_S, users
        kept.current, kept.following = kept.following, ""

    def assign(self, former: Key, key: Key) -> None:
        """Let what was one's be another's from now on; what that one had is over. Does nothing if there is none."""
        kept = self._kept.pop(former, None)
        if kept is not None:
            self.forget(*key)
            self._kept[key] = kept
            for credential in (kept.current, kept.following, kept.former):
                if credential:
                    self._keys[_digest(credential)] = key

    def forget(self, instance_id: str, tenant_id: str) -> None:
        """End those of an instance, or of one tenant there."""
        for key in [k for k in self._kept if k[0] == instance_id and tenant_id in ("", k[1])]:
            kept = self._kept.pop(key)
            self._drop_former(kept)
            for credential in (kept.current, kept.following):
                self._keys.pop(_digest(credential), None)

    def find(self, credential: str, under_way: Container[object], now: float) -> Key | None:
        """Say whose a credential is; None for one that is nobody's, or over. `under_way` are the runs that are."""
        key = self._keys.get(_digest(credential))
        if key is None:
            return None
        kept = self._kept[key]
        if _digest(credential) == _digest(kept.former) and now >= kept.former_until:
            kept.former_users = [user for user in kept.former_users if user in under_way]
            if not kept.former_users:
                self._drop_former(kept)
                return None
        return key

    def _drop_former(self, kept: _Kept) -> None:
        if kept.former:
            del self._keys[_digest(kept.former)]
            kept.former, kept.former_users = "", []


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode(errors="replace")).digest()
