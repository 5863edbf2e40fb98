"""Origins on loopback and a real Envoy before them, for what boxes reach; and a client of the proxy."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from retinue_sandbox.egress import envoy_config, finding
from retinue_sandbox.egress.injected import Secret
from retinue_sandbox.egress.proxy import EnvoyEgress, Options, networks
from retinue_sandbox.egress.targets import Target

VALUE = "sk-live-never-in-a-box%41"
TIMEOUT_S = 10.0


class Ground(NamedTuple):
    """What the tests share."""

    egress: EnvoyEgress
    http: int
    https: int
    authority: Path
    names: dict[str, list[str]]
    records: list[dict[str, Any]]


def certificate(folder: Path, *names: str) -> Path:
    """Make a key and its certificate, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    path = folder / "origin.pem"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, *plain)
    )
    return path


async def echo(request: web.Request) -> web.Response:
    """Answer what came."""
    return web.json_response(
        {"method": request.method, "path": request.path_qs, "headers": dict(request.headers), "tls": request.secure}
    )


@asynccontextmanager
async def origins(folder: Path) -> AsyncIterator[Ground]:
    """Start origins and an egress whose names are the tests' own."""
    pem = certificate(folder, "granted.test", "secret.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    for tls in (None, context):
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    http, https = (address[1] for address in runner.addresses)
    names = {f"{name}.test": ["127.0.0.1"] for name in ("granted", "other", "secret", "impostor", "moving")}
    names |= {"metadata.test": ["169.254.169.254"], "inside.test": ["10.1.2.3", "fd00::1", "::ffff:10.1.2.3"]}
    names["half.test"] = ["10.1.2.3", "127.0.0.1"]

    async def resolve(host: str, port: int) -> list[str]:
        if host not in names:
            raise OSError("no such name")
        return names[host]

    secrets = (
        Secret("key", (Target("secret.test", https),), "authorization", VALUE, frozenset({"ten_a"})),
        Secret("bad", (Target("impostor.test", https),), "x-key", VALUE, None),
    )
    options = Options(
        finding.program(""), str(folder / "run"), secrets, str(pem), networks("127.0.0.0/8"), frozenset({https}),
        resolve=resolve, resolve_interval_s=0.1,
    )  # fmt: skip
    records: list[dict[str, Any]] = []
    egress = EnvoyEgress(options, lambda kind, /, **facts: records.append({"kind": kind, **facts}))
    try:
        yield Ground(egress, http, https, pem, names, records)
    finally:
        await egress.close()
        await runner.cleanup()


@asynccontextmanager
async def box(ground: Ground, *hosts: str, name: str = "box", tenant: str = "ten_a") -> AsyncIterator[str]:
    """Have a way out; answers its socket."""
    folder = await ground.egress.grant(name, hosts, tenant)
    try:
        yield f"{folder}/{envoy_config.SOCKET_NAME}"
    finally:
        await ground.egress.revoke(name)


async def say(path: str, text: str) -> tuple[int, str]:
    """Say something to the proxy, as a whole; answers the status and the body."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(text.replace("\n", "\r\n").encode())
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode().lower().split("\r\n")
            length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
            body = b""
            while len(body) < length and (more := await reader.read(length - len(body))):
                body += more
            return int(lines[0].split()[1]), body.decode()
    finally:
        writer.close()


async def get(path: str, url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> tuple[int, str]:
    """Make a plain request by way of the proxy."""
    host = url.split("/")[2]
    more = "".join(f"{name}: {value}\n" for name, value in (headers or {}).items())
    return await say(path, f"{method} {url} HTTP/1.1\nHost: {host}\n{more}\n")


async def tunnel(path: str, authority: str) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a tunnel; answers the status, and the tunnel."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT_S):
        head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split()[1]), reader, writer


async def talk_tls(ground: Ground, path: str, authority: str, name: str) -> str:
    """Ask through a tunnel, over TLS, for "/inner" as a name; answers the first line, or "" if it is cut off."""
    status, reader, writer = await tunnel(path, authority)
    assert status == 200
    context = ssl.create_default_context(cafile=str(ground.authority))
    context.check_hostname = False
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await writer.start_tls(context, server_hostname=name)
            writer.write(f"GET /inner HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return (await reader.read(-1)).decode().partition("\r\n")[0]
    except (ConnectionError, ssl.SSLError):
        return ""
    finally:
        writer.close()
