"""An audit through a real Prefect server: artifact, final state, events, and a repair under the slot."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.artifacts import Artifact

import blocks
from flows import audit, rotate
from sandbox import infisical
from sandbox.openrouter_account import StoredKey
from tasks.audit.findings import Kind
from tasks.model.events import Event
from tasks.model.keys import marker
from tasks.model.rotation import Rotation
from tasks.world.orchestrator import PrefectWorld
from tests.by_hand import delete_ledger, ledger_value
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.driver import deploy, events

RESOURCE = "prefect.resource.id"


def unsigned(ledger: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger without its writer."""
    return {name: value for name, value in ledger.items() if name not in {"revision", "writer"}}


async def deployed(services: Services) -> Rotation:
    """Return a rotation with a deployment."""
    rotation = await services.prepare(services.rotation())
    await deploy(rotation)
    return rotation


async def rows(rotation: Rotation) -> list[dict[str, str]]:
    """Return the rows of the newest artifact."""
    shown = await Artifact.aget(f"audit-{rotation.connection}")
    assert shown is not None
    return list(json.loads(str(shown.data)))


def orphan_of(services: Services, rotation: Rotation, run_id: UUID) -> StoredKey:
    """Create a key that a run left behind two hours ago."""
    body = {"name": f"{marker(rotation.name, run_id)} left behind", "limit": 5}
    key = services.openrouter.add_key(services.openrouter.accounts[0], body)
    key.created_at -= timedelta(hours=2)
    return key


async def run_of(rotation: Rotation) -> UUID:
    """Return the run that made the current key."""
    value: Any = await ledger_value(rotation.name)
    return UUID(value["current"]["made_by"])


async def test_an_audit_shows_what_it_finds_and_repairs_what_it_may(services: Services) -> None:
    """The first audit fails, and says why in state, artifact and event; the second deletes the orphan only."""
    rotation = await deployed(services)
    await rotate(rotation, return_state=True)
    orphan = orphan_of(services, rotation, await run_of(rotation))
    ledger = await ledger_value(rotation.name)

    found = await audit(rotation.connection, return_state=True)
    shown = await rows(rotation)
    still_there = orphan.hash in services.openrouter.keys
    repaired = await audit(rotation.connection, repair=True, return_state=True)

    assert found.is_failed()
    assert str(found.message).startswith("Action required: 1 finding. First: ")
    assert [(row["finding"], row["key hash"], row["severity"]) for row in shown] == [
        (Kind.ORPHAN.value, orphan.hash, "warning")
    ]
    assert still_there
    assert [(row["finding"], row["severity"]) for row in await rows(rotation)] == [(Kind.ORPHAN.value, "repaired")]
    assert repaired.is_completed()
    assert list(services.openrouter.deleted) == [orphan.hash]
    assert unsigned(await ledger_value(rotation.name)) == unsigned(ledger)
    told = await events(rotation, Event.ORPHAN_FOUND)
    assert {event["payload"]["key_hash"] for event in told} == {orphan.hash}
    assert await events(rotation, Event.ORPHAN_REMOVED)
    said = json.dumps([shown, told, str(found.message)])
    assert not any(secret in said for secret in services.openrouter.secrets)


async def test_a_repair_that_breaks_is_told(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a fault of this package in a repair, the finding says that it was not repaired, and where to look."""
    rotation = await deployed(services)
    await rotate(rotation, return_state=True)
    orphan_of(services, rotation, await run_of(rotation))

    async def break_off(*_: object, **__: object) -> None:
        raise TypeError("sk-or-v1-secret")

    monkeypatch.setattr("tasks.audit.repair.repair_unrecorded", break_off)

    state = await audit(rotation.connection, repair=True, return_state=True)

    assert state.is_failed()
    assert "It was not repaired: An unexpected TypeError was raised" in str(state.message)
    assert list(services.openrouter.deleted) == []


async def test_a_lost_ledger_is_written_anew(services: Services) -> None:
    """After its variables were deleted, the ledger is restored from the only key, which the destination holds."""
    rotation = await deployed(services)
    await rotate(rotation, return_state=True)
    before: Any = await ledger_value(rotation.name)
    (key,) = services.openrouter.live_keys()
    key.created_at -= timedelta(hours=2)
    await delete_ledger(rotation.name)

    state = await audit(rotation.connection, repair=True, return_state=True)

    assert state.is_completed()
    after: Any = await ledger_value(rotation.name)
    assert [(row["finding"], row["severity"]) for row in await rows(rotation)] == [(Kind.LEDGER_LOST.value, "repaired")]
    assert {name: after["current"][name] for name in ("hash", "fingerprint", "made_by", "destinations")} == {
        name: before["current"][name] for name in ("hash", "fingerprint", "made_by", "destinations")
    }


async def test_destinations_with_one_credentials_block_share_a_login(services: Services) -> None:
    """Reading many places of one Infisical takes a single login, and leaves no session open."""
    identity = blocks.InfisicalCredentials(
        host=services.infisical_url, client_id=infisical.CLIENT_ID, client_secret=infisical.CLIENT_SECRET
    )
    await identity.asave("shared", overwrite=True)
    names = ["shared-one", "shared-two", "shared-three"]
    for name in names:
        credentials = await blocks.InfisicalCredentials.aload("shared")
        place = {"project_id": infisical.PROJECT_ID, "environment": "prod", "name": name.upper()}
        await blocks.InfisicalSecret(credentials=credentials, **place).asave(name, overwrite=True)
    services.infisical_app.state.requests.clear()

    async with PrefectWorld() as prefect:
        places = [await prefect.destination(f"infisical-secret/{name}") for name in names]
        await asyncio.gather(*(place.read_content() for place in places))

    paths = [path for _, path in services.infisical_app.state.requests]
    assert len(paths) == 4
    assert sum("login" in path for path in paths) == 1


async def test_an_audit_of_a_connection_that_does_not_exist_is_told_plainly(services: Services) -> None:
    """One sentence names the missing block."""
    state = await audit("nowhere", return_state=True)

    assert state.is_failed()
    assert "the block openrouter-credentials/nowhere does not exist" in str(state.message)
