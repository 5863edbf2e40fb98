"""The cluster's API server, as far as boxes need it: Sandbox objects of one namespace, by a service account."""

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.pod.manifest import GROUP, VERSION

CALL_TIMEOUT_S = 10.0
"""For one call."""

BODY_SIZE_MAX_BYTES = 8 * 1024 * 1024
"""Of one answer: LISTED_MAX objects of some KiB each."""

LISTED_MAX = 500

ACCOUNT_FILE_MAX_BYTES = 64 * 1024

WORDS_MAX = 500
"""Characters of the server's own words that go to the log."""

SERVER = "The cluster's API server"


def unavailable(message: str, private: str = "", check: str = "cluster") -> RetinueError:
    """Say that there is no box to be had from the cluster; what the server said of it is for the log."""
    return RetinueError(Reason.SANDBOX_UNAVAILABLE, message, private=private[:WORDS_MAX], check=check)


def read(path: Path) -> str:
    """Read a file of the service account. Raises SANDBOX_UNAVAILABLE."""
    try:
        with path.open("rb") as file:
            return file.read(ACCOUNT_FILE_MAX_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        raise unavailable(f"The service account has no readable {path.name}.", str(path)) from None


def address() -> str:
    """Where the cluster tells its pods that the server is. Raises SANDBOX_UNAVAILABLE outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise unavailable("RETINUE_KUBERNETES_URL is not set, and this process runs in no pod.")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class Cluster:
    """Calls the API server."""

    def __init__(self, url: str, account: Path, namespace: str) -> None:
        """`account` is a service account's folder, with `token`, `ca.crt` and maybe `namespace`."""
        self._account = account
        self._base = (url or address()).rstrip("/")
        place = namespace or read(account / "namespace")
        self._path = f"/apis/{GROUP}/{VERSION}/namespaces/{place}/sandboxes"
        try:
            context = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as error:
            raise unavailable("The service account has no readable ca.crt.", repr(error)) from None
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context), cookie_jar=aiohttp.DummyCookieJar()
        )

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the server."""
        found = urlsplit(self._base)
        return found.hostname or "", found.port or 443

    async def make(self, wanted: dict[str, Any]) -> None:
        """Make a Sandbox. Raises SANDBOX_UNAVAILABLE."""
        status, body = await self._call("POST", self._path, {"fieldValidation": "Strict"}, wanted)
        if status != 201:
            raise _refusal("make sandboxes", status, body)

    async def find(self, name: str) -> dict[str, Any] | None:
        """Read a Sandbox; None if there is none. Raises SANDBOX_UNAVAILABLE."""
        status, body = await self._call("GET", f"{self._path}/{name}")
        if status not in (200, 404):
            raise _refusal("read sandboxes", status, body)
        return body if status == 200 else None

    async def names(self, selector: str) -> list[str]:
        """List names of Sandboxes by their labels, LISTED_MAX at most. Raises SANDBOX_UNAVAILABLE."""
        params = {"labelSelector": selector, "limit": str(LISTED_MAX)}
        status, body = await self._call("GET", self._path, params)
        if status != 200:
            raise _refusal("list sandboxes", status, body)
        return [str(item["metadata"]["name"]) for item in body.get("items") or ()]

    async def remove(self, name: str) -> None:
        """Remove a Sandbox with its pod. Safe to call twice. Raises SANDBOX_UNAVAILABLE."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        status, body = await self._call("DELETE", f"{self._path}/{name}", None, options)
        if status not in (200, 202, 404):
            raise _refusal("delete sandboxes", status, body)

    async def _call(
        self, method: str, path: str, params: dict[str, str] | None = None, body: Any = None
    ) -> tuple[int, dict[str, Any]]:
        # The cluster renews the token in place every hour.
        token = await asyncio.to_thread(read, self._account / "token")
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "User-Agent": "retinue"}
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            async with (
                asyncio.timeout(CALL_TIMEOUT_S),
                self._http.request(
                    method, self._base + path, params=params, data=data, headers=headers, allow_redirects=False
                ) as answer,
            ):
                found = bytearray()
                async for chunk in answer.content.iter_any():
                    found += chunk
                    if len(found) > BODY_SIZE_MAX_BYTES:
                        raise unavailable(f"{SERVER} answers more than can be read.")
                return answer.status, _decoded(bytes(found))
        except TimeoutError:
            raise unavailable(f"{SERVER} does not answer in time.", f"{method} {path}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise unavailable(f"{SERVER} does not answer.", f"{method} {path}: {error!r}") from None

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.close()


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"message": text[:WORDS_MAX].decode(errors="replace")}
    return found if isinstance(found, dict) else {}


def _refusal(what: str, status: int, body: dict[str, Any]) -> RetinueError:
    words = f"{status}: {body.get('message', '')}"
    if status == 401:
        return unavailable("The cluster does not accept the service account's token.", words)
    if status == 403 and "quota" in words.lower():
        return unavailable("The namespace's quota has no room for another box.", words)
    if status == 403:
        return unavailable(f"The service account may not {what}; see deploy/sandbox.", words)
    if status == 404:
        return unavailable("The cluster has no such namespace, or no agent-sandbox.", words)
    return unavailable(f"{SERVER} refused to {what}.", words)
