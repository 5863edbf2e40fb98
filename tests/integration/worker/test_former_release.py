"""A worker of the release before this one, from the repository's own history, beside one of this release."""

import asyncio
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from retinue_kit import streams

ROOT = Path(__file__).parents[3]
COMMIT = "e11c37c"
"""The release before this one."""

PARTS = ("services/router/src", "libs/kit/src", "proto/gen")
CONTACTS = 6
ROUNDS = 5


@pytest.fixture
def former(run_dir):
    """Unpack the former release; answers what makes Python import it."""
    if subprocess.run(["git", "-C", ROOT, "cat-file", "-e", COMMIT], capture_output=True).returncode:
        pytest.skip(f"the history does not hold {COMMIT}, the release before this one")
    packed = run_dir / "former.tar"
    subprocess.run(["git", "-C", ROOT, "archive", "-o", packed, COMMIT, *PARTS], check=True, capture_output=True)
    with tarfile.open(packed) as archive:
        archive.extractall(run_dir / "former", filter="data")
    return os.pathsep.join(str(run_dir / "former" / part) for part in PARTS)


async def test_old_and_new_workers_share_the_work_and_take_over_from_each_other(
    mesh, former, launch, peer, healthy, when_over
):
    async def slowly(request):
        for word in ("one", "two", "three"):
            yield {"text_delta": {"text": word}}
            await asyncio.sleep(0.01)
        yield {"message_completed": {"text": "one two three"}}
        yield {"finished": {"usage": {"input_tokens": 3, "output_tokens": 2, "model": "fake"}}}

    mesh.adapter.script = slowly
    settings = {f"RETINUE_{name.upper()}": value for name, value in mesh.settings.items()}
    address = f"unix:{mesh.workspaces}/former.sock"
    old = launch("retinue_router.worker", **settings, RETINUE_ADDRESS=address, PYTHONPATH=former)
    await healthy(peer("worker", address))
    alone = await mesh.submit("to the old one alone", contact="first")
    assert (await when_over(alone))["state"] == "succeeded"

    new = await mesh.start_worker()
    contacts = [f"c{n}" for n in range(CONTACTS)]
    runs = {name: [] for name in contacts}
    for number in range(ROUNDS):
        for name in contacts:
            runs[name].append(await mesh.submit(f"m{number}", contact=name))
    old.terminate()  # it lets its runs end, and leaves the rest
    for name in contacts:
        for run in runs[name]:
            row = await when_over(run)
            assert (row["state"], row["attempt"]) == ("succeeded", 1)
    assert await asyncio.to_thread(old.wait, 30) == 0

    again = launch("retinue_router.worker", **settings, RETINUE_ADDRESS=address, PYTHONPATH=former)
    await healthy(peer("worker", address))
    later = {name: await mesh.submit("back again", contact=name) for name in contacts}
    await new.aclose()
    for name in contacts:
        assert (await when_over(later[name]))["state"] == "succeeded"
        kinds = [kind for kind in await mesh.types(name) if kind != "run.started"]
        assert kinds == ["user.message", "assistant.message", "run.succeeded"] * (ROUNDS + 1)
        told = [entry.cursor for entry in await mesh.told(name) if entry.kind is streams.Kind.DURABLE]
        assert told == sorted(set(told))
    assert again.poll() is None
