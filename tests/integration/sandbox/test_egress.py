"""The way out of a box through a real Envoy, to origins on loopback; no box has more than it was granted."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from egress_origins import TIMEOUT_S, VALUE, Ground, box, get, origins, say, talk_tls, tunnel
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.egress import envoy_config
from retinue_sandbox.egress.envoy import Folder
from retinue_sandbox.egress.proxy import EnvoyEgress, Options

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    """Have origins and one egress before them."""
    async with origins(tmp_path_factory.mktemp("egress")) as made:
        yield made


async def test_what_is_granted_is_reached_and_the_origin_learns_nothing_of_the_proxy(ground: Ground) -> None:
    async with box(ground, f"granted.test:{ground.http}", f"granted.test:{ground.https}") as path:
        url = f"http://granted.test:{ground.http}/a?b=c"
        status, body = await get(path, url, {"X-Envoy-Retry-On": "5xx", "Proxy-Authorization": "x"}, "PUT")
        assert status == 200, body
        told = json.loads(body)
        assert (told["method"], told["path"], told["tls"]) == ("PUT", "/a?b=c", False)
        assert told["headers"] == {"Host": f"granted.test:{ground.http}", "Content-Length": "0"}
        line = await talk_tls(ground, path, f"granted.test:{ground.https}", "granted.test")
        assert line == "HTTP/1.1 200 OK"


async def test_what_is_not_granted_is_refused_whatever_it_is_called(ground: Ground) -> None:
    async with box(ground, f"granted.test:{ground.http}") as path:
        good = f"granted.test:{ground.http}"
        for authority in (
            f"other.test:{ground.http}", f"granted.test:{ground.https}", "granted.test", f"granted.test.:{ground.http}",
            f"127.0.0.1:{ground.http}", f"sub.granted.test:{ground.http}", f"localhost:{ground.http}", "169.254.1.1",
        ):  # fmt: skip
            assert (await get(path, f"http://{authority}/"))[0] == 403, authority
            status, _, writer = await tunnel(path, authority)
            writer.close()
            assert status == (403 if ":" in authority else 400), authority
        # The URL decides, not the header; and a request that names no host goes nowhere.
        status, body = await say(path, f"GET http://{good}/ HTTP/1.1\nHost: other.test\n\n")
        assert (status, json.loads(body)["headers"]["Host"]) == (200, good)
        assert (await say(path, f"GET http://other.test:{ground.http}/ HTTP/1.1\nHost: {good}\n\n"))[0] == 403
        assert (await say(path, "GET / HTTP/1.0\n\n"))[0] in (400, 403, 426)
        for method in ("TRACE", "PROPFIND"):
            assert (await get(path, f"http://{good}/", method=method))[0] == 403
        assert (await get(path, f"http://{good}/", {"Connection": "upgrade", "Upgrade": "websocket"}))[0] == 403


async def test_a_tunnel_to_a_tls_port_ends_unless_it_is_tls_to_the_granted_host(ground: Ground) -> None:
    async with box(ground, f"granted.test:{ground.https}") as path:
        authority = f"granted.test:{ground.https}"
        assert await talk_tls(ground, path, authority, "granted.test") == "HTTP/1.1 200 OK"
        assert await talk_tls(ground, path, authority, "other.test") == ""
        _, reader, writer = await tunnel(path, authority)
        writer.write(b"GET / HTTP/1.1\r\nHost: granted.test\r\n\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_a_name_is_reached_only_where_it_leads_to_a_public_address(ground: Ground) -> None:
    port = ground.http
    hosts = [f"{name}.test:{port}" for name in ("metadata", "inside", "half", "unknown")]
    async with box(ground, *hosts, f"169.254.169.254:{port}", f"10.1.2.3:{port}") as path:
        for host in (*hosts[:2], hosts[3], f"169.254.169.254:{port}", f"10.1.2.3:{port}"):
            status, body = await get(path, f"http://{host}/")
            assert (status, "no public address" in body) == (403, True), host
        # Of several addresses those are tried that may be.
        assert (await get(path, f"http://{hosts[2]}/"))[0] == 200


async def test_a_name_that_moves_to_a_private_address_is_not_followed_there(
    ground: Ground, eventually: Callable[..., Awaitable[Any]]
) -> None:
    url = f"http://moving.test:{ground.http}/"
    async with box(ground, f"moving.test:{ground.http}") as path:
        assert (await get(path, url))[0] == 200
        ground.names["moving.test"] = ["192.168.0.1"]

        async def refused() -> bool:
            return (await get(path, url))[0] == 403

        await eventually(refused)
        ground.names["moving.test"] = ["127.0.0.1"]

        async def passed() -> bool:
            return (await get(path, url))[0] == 200

        await eventually(passed)


async def test_boxes_do_not_share_grants_and_a_closed_way_is_closed(ground: Ground) -> None:
    """no_cross_tenant: which socket it is decides, nothing that is said on it."""
    granted, other = f"granted.test:{ground.http}", f"other.test:{ground.http}"
    async with box(ground, granted, name="one") as one:
        async with box(ground, other, name="two", tenant="ten_b") as two:
            assert [(await get(path, f"http://{host}/"))[0] for path in (one, two) for host in (granted, other)] == [
                200, 403, 403, 200,
            ]  # fmt: skip
            status, reader, writer = await tunnel(two, other)
            assert status == 200
        async with asyncio.timeout(TIMEOUT_S):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError):  # noqa: PT011 - refused, or not there
            await asyncio.open_unix_connection(two)
        assert (await get(one, f"http://{granted}/"))[0] == 200


async def test_a_secret_takes_its_placeholders_place_on_the_way_to_its_host_alone(ground: Ground) -> None:
    secret = f"secret.test:{ground.https}"
    hosts = (secret, f"granted.test:{ground.http}", f"impostor.test:{ground.https}")
    holder = {"Authorization": "Bearer retinue-secret:key"}
    async with box(ground, *hosts) as path, box(ground, *hosts, name="stranger", tenant="ten_b") as stranger:
        status, body = await get(path, f"http://{secret}/v1", holder)
        assert status == 200, body
        told = json.loads(body)
        assert (told["headers"]["Authorization"], told["tls"]) == (f"Bearer {VALUE}", True)
        status, body = await get(path, f"http://{secret}/v1", {"authorization": "retinue-secret:key"})
        assert json.loads(body)["headers"]["Authorization"] == VALUE
        # Elsewhere, as another's, within something else, or over a connection that is not the host's own: nowhere.
        for way, host, headers in (
            (path, hosts[1], holder),
            (stranger, secret, holder),
            (path, secret, {"Authorization": "Basic retinue-secret:key"}),
            (path, secret, {"Authorization": "Bearer retinue-secret:other"}),
            (path, secret, {"X-Key": "retinue-secret:key"}),
        ):
            status, body = await get(way, f"http://{host}/", headers)
            assert (status, "may not go" in body) == (403, True), (host, headers)
        status, body = await get(path, f"http://{hosts[2]}/", {"X-Key": "retinue-secret:bad"})
        assert (status, VALUE in body) == (503, False)


async def test_each_decision_is_written_down_without_what_was_said(
    ground: Ground, eventually: Callable[..., Awaitable[Any]]
) -> None:
    authority = f"granted.test:{ground.http}"
    async with box(ground, authority, name="audited", tenant="ten_q") as path:
        await get(path, f"http://{authority}/hidden?token=abc")
        await get(path, "http://evil.test/")
        status, _, writer = await tunnel(path, authority)
        assert status == 200
        writer.close()

    def told() -> list[dict[str, Any]]:
        rows = [row for row in ground.records if row["box"] == "audited"]
        assert len(rows) == 3
        return rows

    rows = await eventually(told)
    by_effect = sorted((row["effect"], row["method"], row["host"], row["status"]) for row in rows)
    assert by_effect == [
        ("allowed", "CONNECT", authority, 200), ("allowed", "GET", authority, 200), ("refused", "GET", "evil.test", 403)
    ]  # fmt: skip
    assert {(row["kind"], row["tenant_id"]) for row in rows} == {("egress", "ten_q")}
    assert {row["address"] for row in rows if row["effect"] == "allowed"} == {f"127.0.0.1:{ground.http}"}
    assert "hidden" not in str(rows)
    assert "abc" not in str(rows)


async def test_bounded_requests_and_connections_of_one_box(
    ground: Ground, eventually: Callable[..., Awaitable[Any]]
) -> None:
    authority = f"granted.test:{ground.http}"
    async with box(ground, authority) as path:
        held = [await asyncio.open_unix_connection(path) for _ in range(envoy_config.CONNECTIONS_MAX)]
        for _, writer in held:  # so that each was let in before the next one comes
            writer.write(f"GET http://{authority}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for reader, _ in held:
            assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await get(path, f"http://{authority}/")
        for _, writer in held:
            writer.close()

        async def is_let_in() -> bool:
            try:
                return (await get(path, f"http://{authority}/"))[0] == 200
            except (asyncio.IncompleteReadError, ConnectionError):
                return False

        await eventually(is_let_in)
        reader, writer = await asyncio.open_unix_connection(path)
        status = b""
        for _ in range(2 * envoy_config.REQUESTS_BURST):
            writer.write(b"HEAD http://evil.test/ HTTP/1.1\r\nHost: x\r\n\r\n")
            status = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)).split()[1]
            if status == b"429":
                break
        writer.close()
        assert status == b"429"


async def test_box_or_refuse_without_a_proxy_there_is_no_way_out(ground: Ground) -> None:
    egress = EnvoyEgress(Options(None), lambda kind, /, **facts: None)
    assert not egress.check().ok
    with pytest.raises(RetinueError) as caught:
        await egress.grant("box", ["granted.test:80"])
    assert (caught.value.reason, caught.value.metadata) == (Reason.SANDBOX_UNAVAILABLE, {"check": "egress"})
    with pytest.raises(RetinueError) as caught:
        await ground.egress.grant("box", ["granted.test"])
    assert caught.value.reason == Reason.FIELD_INVALID
    await egress.close()


async def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(run_dir: Path) -> None:
    """Files of a proxy hold secrets."""
    run_dir.chmod(0o755)
    used, killed = Folder(str(run_dir)), Folder(str(run_dir))
    killed.write("listeners.json", {"value": VALUE})
    assert (killed.path / "listeners.json").stat().st_mode & 0o777 == 0o600
    os.close(killed._lock)  # as its end by a signal does
    Folder(str(run_dir)).close()
    assert [path.name for path in run_dir.iterdir()] == [used.path.name]
    os.close(killed.fd)
    used.close()
    used.close()
    assert list(run_dir.iterdir()) == []


async def test_an_envoy_that_does_not_come_up_is_no_way_out(run_dir: Path) -> None:
    run_dir.chmod(0o755)
    egress = EnvoyEgress(Options(Path("/bin/false"), str(run_dir)), lambda kind, /, **facts: None)
    for _ in range(2):
        with pytest.raises(RetinueError) as caught:
            await egress.grant("box", ["127.0.0.1:1"])
        assert (caught.value.reason, caught.value.metadata) == (Reason.SANDBOX_UNAVAILABLE, {"check": "egress"})
    await egress.close()
    assert list(run_dir.iterdir()) == []
