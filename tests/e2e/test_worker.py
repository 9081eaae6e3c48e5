"""Rotations by a real worker process."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from flows import rotate
from sandbox import infisical, openrouter, vault
from sandbox.server import Fault
from sandbox.stack import Stack
from tests.e2e.conftest import World, with_processes
from tests.e2e.driver import ended, retry, start

pytestmark = with_processes


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Iterator[Stack]:
    """A worker, and the project's own deployments."""
    with stack.as_client():
        stack.cli("work-pool", "create", "--type", "process", "--overwrite", "key-rotation")
    stack.cli("deploy", "--all", "--no-prompt")
    process = stack.start_worker()
    yield stack
    process.stop()


def everything_stored(home: Path) -> bytes:
    """Every file of the server and the worker, and every row of the database, with what is base64 in it decoded."""
    files = b"\n".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    with sqlite3.connect(f"file:{home / 'prefect' / 'prefect.db'}?mode=ro", uri=True) as database:
        rows = "\n".join(database.iterdump()).encode()
    return files + rows


def spellings(secret: str) -> list[bytes]:
    """The ways in which a secret may be written down: as it is, and in base64 at each of the three alignments."""
    found = [secret.encode()]
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + secret.encode())
        found.append(encoded[4:-4])
    return found


async def test_three_destinations_one_of_them_broken(world: World, worker: Stack) -> None:
    """With one destination failing nothing is revoked and the run says so; Retry finishes the same rotation."""
    destinations = ["secret/three", "vault-secret/three", "infisical-secret/three"]
    rotation = await world.prepare(world.rotation(destinations=destinations))
    run_id = await start(rotation)
    assert (await ended(run_id)).state_name == "Completed"
    old = world.openrouter.live_keys()[0]

    world.vault_app.state.faults.add(Fault(method="POST", path="/data/", status=503, body='{"errors":["down"]}'))
    run_id = await start(rotation)
    failed = await ended(run_id)
    alive_after_failure = world.openrouter.is_live(old.secret)
    world.vault_app.state.faults.clear()
    await retry(run_id)
    healed = await ended(run_id, attempt=2)

    assert failed.state_name == "Failed"
    assert "publish failed: Vault at" in str(failed.state.message if failed.state else "")
    assert "Retry is safe" in str(failed.state.message if failed.state else "")
    assert alive_after_failure
    assert healed.state_name == "Completed"
    assert len(world.openrouter.created) == 2
    assert world.openrouter.deleted == [old.hash]
    assert len(world.openrouter.live_keys()) == 1


async def test_no_secret_is_stored_anywhere(world: World, worker: Stack) -> None:
    """Good and failed rotations leave no key, management key, token or client secret in any file or row."""
    destinations = ["secret/leak", "vault-secret/leak", "infisical-secret/leak"]
    rotation = await world.prepare(world.rotation(destinations=destinations))
    assert (await ended(await start(rotation))).state_name == "Completed"
    leaky = " ".join(world.openrouter.secrets)
    world.infisical_app.state.faults.add(Fault("after", "PATCH", "/raw/", status=500, body=leaky))
    world.infisical_app.state.faults.add(Fault("before", "GET", "/raw/", status=500, body=leaky))
    assert (await ended(await start(rotation))).state_name == "Failed"

    stored = everything_stored(worker.home)

    secrets = {
        *world.openrouter.secrets,
        openrouter.DEFAULT_MANAGEMENT_KEY,
        vault.ROOT_TOKEN,
        infisical.CLIENT_SECRET,
        *world.infisical.tokens,
    }
    leaks = [secret[:16] for secret in secrets for spelling in spellings(secret) if spelling in stored]
    assert leaks == []
    assert rotation.name.encode() in stored


async def test_the_search_for_secrets_finds_what_is_there(tmp_path: Path) -> None:
    """The search of the test above finds a secret in a file, plain and in base64 at any alignment."""
    secret = "sk-or-v1-" + "0123456789abcdef" * 4
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + secret.encode() + b"y" * shift)
        assert any(spelling in encoded for spelling in spellings(secret))
    assert spellings(secret)[0] == secret.encode()


async def test_a_superseded_key_dies_when_its_overlap_ends(world: World, worker: Stack) -> None:
    """The worker revokes a superseded key at the end of its overlap, though it may start the run some seconds early."""
    rotation = await world.prepare(world.rotation(overlap=timedelta(seconds=9)))
    for _ in range(2):
        assert (await rotate(rotation, return_state=True)).is_completed()
    begun = time.monotonic()

    while len(world.openrouter.live_keys()) > 1 and time.monotonic() - begun < 60:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.1)

    assert len(world.openrouter.live_keys()) == 1
    assert time.monotonic() - begun > 8
