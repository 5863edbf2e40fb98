"""Documents served as they are: the OpenAPI document, its rendered page, the public signing keys."""

from importlib import resources

from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import RetinueError

from retinue_gateway.asgi import Request

KEYS_FRESH_S = 5.0
"""How long the key set is repeated: Envoy asks seldom, and a rotated key signs only what is issued after it."""


class Documents:
    """The OpenAPI document and its page."""

    def __init__(self) -> None:
        here = resources.files(__package__ or "retinue_gateway")
        self._openapi = here.joinpath("openapi.json").read_bytes()
        self._page = here.joinpath("docs.html").read_bytes()

    async def openapi(self, request: Request) -> None:
        """GET /openapi.json."""
        await request.answer(200, self._openapi, "application/json")

    async def page(self, request: Request) -> None:
        """GET /docs."""
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        await request.answer(200, self._page, "text/html; charset=utf-8", {"content-security-policy": policy})


class KeySet:
    """The public signing keys, asked of the directory; the last answer holds while it is away."""

    def __init__(self, directory: Peer, clock: Clock) -> None:
        self._directory = directory
        self._stub = directory_service_pb2_grpc.DirectoryServiceStub(directory.channel)
        self._clock = clock
        self._keys = b""
        self._asked_at = float("-inf")

    async def jwks(self, request: Request) -> None:
        """GET /.well-known/jwks.json. Raises RetinueError if the keys were never read."""
        if self._clock.monotonic() - self._asked_at >= KEYS_FRESH_S:
            try:
                asked = directory_service_pb2.GetKeySetRequest()
                answer = await self._directory.call(self._stub.GetKeySet, asked)
            except RetinueError:
                if not self._keys:
                    raise
            else:
                self._keys = answer.jwks.encode()
                self._asked_at = self._clock.monotonic()
        await request.answer(200, self._keys, "application/json", {"cache-control": "max-age=5"})
