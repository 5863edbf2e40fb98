"""Breakers in Redis, shared by all processes of policy. An emptied Redis is a closed breaker, which is harmless."""

from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

import msgspec
import redis.asyncio
from redis.exceptions import RedisError
from retinue_kit.errors import RetinueError

from retinue_policy.domain.breaker import Breaker
from retinue_policy.operations.breakers import Changed, Key

SWAP_TRIES_MAX = 8
"""Other processes may change a breaker at the same moment; each loser's next try begins from the winner's value."""

BREAKERS_MAX = 2_000
"""Tenants' breakers that are looked at, the latest ones: some 400 KB twice a second. With more tenants failing at once
it is the runtime that fails, and its own breaker, which is always looked at, keeps all of them away."""

INDEX = "breakers"
"""The names of tenants' breakers by the time at which they are forgotten."""

_decoder = msgspec.json.Decoder(Breaker)


def redis_key(key: Key) -> str:
    """Name a breaker as Redis knows it."""
    return f"t:{key.tenant_id}:breaker:{key.runtime}" if key.tenant_id else f"breaker:{key.runtime}"


def _decoded(value: bytes | None) -> Breaker | None:
    """Read a breaker; one that another version wrote differently counts as closed."""
    try:
        return _decoder.decode(value) if value else None
    except msgspec.DecodeError:
        return None


class BreakerStore:
    """Implements operations.breakers.Store. Raises RetinueError(DEPENDENCY_UNAVAILABLE) if Redis does not answer."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self._redis: Any = client
        source = resources.files(__package__ or "retinue_policy").joinpath("swap.lua").read_text("utf-8")
        self._swap = client.register_script(source)

    async def read(self, runtimes: Iterable[str], now: float) -> dict[Key, Breaker]:
        """Read what is known of whole runtimes, and the tenants' breakers that are not forgotten."""
        try:
            names = await self._redis.zrange(INDEX, "+inf", now, desc=True, byscore=True, offset=0, num=BREAKERS_MAX)
            keys = [Key(runtime, "") for runtime in runtimes]
            for name in names:
                runtime, _, tenant_id = name.decode().partition(" ")
                keys.append(Key(runtime, tenant_id))
            values = await self._redis.mget([redis_key(key) for key in keys])
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        found = {key: _decoded(value) for key, value in zip(keys, values, strict=True)}
        return {key: breaker for key, breaker in found.items() if breaker is not None}

    async def change(
        self, key: Key, change: Callable[[Breaker | None], Breaker | None], known: Breaker | None, now: float
    ) -> Changed:
        """Change a breaker, beginning from what is known of it, and again from what it really is."""
        try:
            expected = msgspec.json.encode(known) if known is not None else b""
            for _ in range(SWAP_TRIES_MAX):
                before = _decoded(expected)
                after = change(before)
                value = msgspec.json.encode(after) if after is not None else b""
                kept_s = after.kept_s(now) if after is not None else 0.0
                swapped, expected = await self._swap(
                    keys=[redis_key(key)], args=[expected, value, max(1, round(kept_s * 1000))]
                )
                if swapped:
                    await self._index(key, after, now)
                    return Changed(before, after)
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        raise RetinueError.unavailable("redis", private=f"{redis_key(key)} changes all the time")

    async def _index(self, key: Key, after: Breaker | None, now: float) -> None:
        """Note under which name it is found. Whoever dies before leaves a breaker that opens with its next failure."""
        if not key.tenant_id:
            return
        name = f"{key.runtime} {key.tenant_id}"
        if after is None:
            await self._redis.zrem(INDEX, name)
        else:
            await self._redis.zadd(INDEX, {name: now + after.kept_s(now)})
        await self._redis.zremrangebyscore(INDEX, "-inf", now)
