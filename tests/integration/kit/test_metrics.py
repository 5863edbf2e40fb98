"""What a process tells of itself, as Prometheus reads it: over a unix socket or TCP, bounded, and nothing else."""

import asyncio

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from retinue_kit import metrics
from retinue_kit.config import SettingError
from retinue_kit.metrics import Exposition


@pytest.fixture
async def told(run_dir):
    """A client of an exposition on a unix socket."""
    exposition = Exposition(f"unix:{run_dir / 'm.sock'}")
    await exposition.start()
    transport = httpx.AsyncHTTPTransport(uds=str(run_dir / "m.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://process") as client:
        yield client
    await exposition.stop()


async def value(client, name, **labels):
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return next(s.value for family in families for s in family.samples if s.name == name and s.labels == labels)


async def test_a_counter_is_told_as_it_grows(told):
    metrics.stale_writes_refused.labels("postgres").inc(0)
    before = await value(told, "retinue_stale_writes_refused_total", sink="postgres")
    metrics.stale_writes_refused.labels("postgres").inc()
    assert await value(told, "retinue_stale_writes_refused_total", sink="postgres") == before + 1


async def test_memory_and_processor_time_of_the_process_are_told(told):
    assert await value(told, "process_resident_memory_bytes") > 0
    assert await value(told, "process_cpu_seconds_total") > 0


async def test_another_path_is_not_found(told):
    answer = await told.get("/")
    assert (answer.status_code, answer.text) == (404, "There is /metrics only.\n")


async def test_a_request_that_does_not_end_is_cut_off_at_its_bound_and_others_are_served(told, run_dir):
    reader, writer = await asyncio.open_unix_connection(run_dir / "m.sock")
    writer.write(b"x" * (2 * metrics.REQUEST_SIZE_MAX_BYTES))
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert (await told.get("/metrics")).status_code == 200


@pytest.mark.parametrize("size_bytes", [1024, 16 * 1024 * 1024])
async def test_a_peer_that_never_reads_is_cut_off(run_dir, monkeypatch, eventually, size_bytes):
    """Whether what it is told fits into the system's buffers or not."""
    monkeypatch.setattr(metrics, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(metrics, "generate_latest", lambda _: b"x" * size_bytes)
    ended = []

    class Watched(Exposition):
        async def _answer(self, reader, writer):
            await super()._answer(reader, writer)
            ended.append(writer.transport.get_write_buffer_size())

    exposition = Watched(f"unix:{run_dir / 'w.sock'}")
    await exposition.start()
    _, writer = await asyncio.open_unix_connection(run_dir / "w.sock", limit=1024)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await eventually(lambda: ended == [0])
    writer.close()
    await exposition.stop()


async def test_tcp_serves_as_well():
    exposition = Exposition("127.0.0.1:0")
    await exposition.start()
    assert exposition.port > 0
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{exposition.port}") as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    await exposition.stop()


@pytest.mark.parametrize("address", ["localhost", "localhost:", "localhost:many", "localhost:70000"])
async def test_what_is_no_address_is_refused_by_the_settings_name(address):
    with pytest.raises(SettingError, match=r"^RETINUE_METRICS_ADDRESS="):
        await Exposition(address).start()
