"""Rotations by a real worker process."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from flows import rotate
from sandbox.server import Fault
from sandbox.stack import Stack
from tasks.model.tries import TRIES_AGAIN
from tests.by_hand import ledger_of
from tests.e2e.conftest import Services, with_processes
from tests.e2e.driver import ended, retirements_of, start
from tests.e2e.leaks import everything_stored, spellings
from tests.e2e.processes import check_converged, check_nothing_leaked

pytestmark = with_processes


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Iterator[Stack]:
    """A worker, and the project's own deployments."""
    with stack.as_client():
        stack.cli("work-pool", "create", "--type", "key-rotation", "--overwrite", "key-rotation")
    stack.cli("deploy", "--all", "--no-prompt")
    process = stack.start_worker()
    yield stack
    process.stop()


async def test_no_secret_is_stored_anywhere(services: Services, worker: Stack) -> None:
    """A failed rotation leaves no key, management key, token or client secret in any file or row."""
    destinations = ["secret/leak", "vault-secret/leak", "infisical-secret/leak"]
    rotation = await services.prepare(services.rotation(destinations=destinations))
    assert (await rotate(rotation, return_state=True)).is_completed()
    leaky = " ".join(services.openrouter.secrets)
    services.infisical_app.state.faults.add(Fault("after", "PATCH", "/raw/", status=500, body=leaky))
    services.infisical_app.state.faults.add(Fault("before", "GET", "/raw/", status=500, body=leaky))
    assert (await ended(await start(rotation))).state_name == TRIES_AGAIN

    check_nothing_leaked(services)
    assert rotation.name.encode() in everything_stored(worker)


def test_the_search_for_secrets_finds_what_is_there() -> None:
    """The search of the test above finds a secret in a file, plain and in base64 at any alignment."""
    secret = "sk-or-v1-" + "0123456789abcdef" * 4
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + secret.encode() + b"y" * shift)
        assert any(spelling in encoded for spelling in spellings(secret))
    assert spellings(secret)[0] == secret.encode()


async def test_a_superseded_key_dies_when_its_overlap_ends(
    services: Services, worker: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker revokes a superseded key at the end of its overlap, although it may take the run seconds early."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(seconds=9)))
    for _ in range(2):
        assert (await rotate(rotation, return_state=True)).is_completed()
    [former] = (await ledger_of(rotation.name)).superseded
    deleted: dict[str, datetime] = {}
    delete_key = services.openrouter.delete_key
    monkeypatch.setattr(
        services.openrouter,
        "delete_key",
        lambda key: (deleted.setdefault(key.hash, datetime.now(UTC)), delete_key(key)),
    )

    [retirement] = await retirements_of(rotation)
    done = await ended(retirement.id)

    assert done.state_name == "Completed"
    assert list(deleted) == [former.hash]
    assert deleted[former.hash] >= former.revoke_at
    await check_converged(services, rotation)
