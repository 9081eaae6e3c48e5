"""The overview and the check of connections, against a real Prefect server."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import Cancelled
from prefect.variables import Variable

from flows import check_connections, rotate, status
from flows.deployments import save_deployment
from flows.overview import overview as refresh
from flows.show import overview
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.server import Fault
from tasks.model.rotation import Rotation
from tasks.model.schedules import parse_timetable
from tasks.world.deployments import accepts_zone, schedule_of
from tasks.world.inventory import read_deployments
from tasks.world.ledgers import VariableStore, all_ledgers
from tasks.world.management_keys import PREFIX
from tasks.world.open_ledger import KEPT_TERMS
from tests.by_hand import delete_ledger, edit_ledger
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.driver import retirements_of


@pytest.fixture(autouse=True)
async def no_other_rotations(services: Services) -> None:
    """Remove the deployments and ledgers of other tests."""
    async with get_client() as client:
        for deployment in await read_deployments():
            await client.delete_deployment(UUID(deployment["id"]))
    for name in [name async for name, _ in all_ledgers()]:
        await delete_ledger(name)


async def deploy(rotation: Rotation) -> Rotation:
    """Create a rotation's deployment, without auto-rotation."""
    table = parse_timetable(30, "03:30", "Europe/Berlin", accepts_zone)
    first = table.next_rotation(datetime.now(UTC), None)
    await save_deployment(None, rotation, schedule_of(table, first), active=False)
    return rotation


async def line(rotation: Rotation) -> str:
    """Return the rotation's line above the table, if it needs a person, and its row in the table."""
    artifact: Any = await Artifact.aget("key-rotations")
    starts = f"- **[{rotation.name}](", f"| [{rotation.name}]("
    return " ".join(line for line in str(artifact.data).splitlines() if line.startswith(starts))


async def test_the_overview_shows_how_the_last_run_of_a_rotation_ended(services: Services) -> None:
    """The overview shows key and result of a completed run, and the reason of a failed one."""
    rotation = await deploy(await services.prepare(services.rotation()))

    await rotate(rotation, return_state=True)
    await refresh(return_state=True)
    after_success = await line(rotation)
    services.openrouter_app.state.faults.add(Fault(status=401, body='{"error":{"code":401}}'))
    await rotate(rotation, return_state=True)
    state = await refresh(return_state=True)
    after_failure = await line(rotation)

    label = services.openrouter.live_keys()[0].label
    assert "| healthy |" in after_success
    assert f"| {label}, below 1 h |" in after_success
    assert "completed" in after_success
    assert "| failed |" in after_failure
    assert "answered 401 while creating a key" in after_failure
    assert f"| {label}, below 1 h |" in after_failure
    assert "1 failed" in str(state.message)


async def test_overviews_that_are_written_at_once_leave_one(services: Services) -> None:
    """Given several forms that refresh it at the same moment, only the newest version stays."""
    await asyncio.gather(*(overview.show([], datetime.now(UTC)) for _ in range(5)))

    async with get_client() as client:
        left = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[overview.OVERVIEW]))
        )
    assert len(left) == 1


async def test_a_cancelled_retirement_is_shown(services: Services) -> None:
    """A cancelled retirement keeps the old key alive, and the overview says so."""
    rotation = await deploy(await services.prepare(services.rotation(overlap=timedelta(hours=6))))
    for _ in range(2):
        await rotate(rotation, return_state=True)
    [retirement] = await retirements_of(rotation)
    async with get_client() as client:
        await client.set_flow_run_state(retirement.id, Cancelled(), force=True)

    rows = await status.read()

    [mine] = [row for row in rows if row.name == rotation.name]
    assert "kept: retirement cancelled" in mine.superseded
    assert mine.health is overview.Health.DEGRADED


async def test_a_broken_overview_never_fails_the_check_of_connections(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed refresh of the overview only leads to a warning in the run's log."""
    await deploy(await services.prepare(services.rotation()))

    async def fail() -> int:
        raise ValueError("sk-or-v1-canary")

    monkeypatch.setattr(overview, "read_facts", fail)

    state = await check_connections(return_state=True)

    assert state.is_completed(), state.message
    assert "The overview of all rotations was not refreshed (ValueError)." in caplog.text
    assert "canary" not in caplog.text


async def test_the_overview_is_one_artifact_whose_time_is_that_of_its_content(services: Services) -> None:
    """Every refresh replaces the last artifact, so that they do not accumulate, and has its own creation time."""
    await deploy(await services.prepare(services.rotation()))
    await refresh(return_state=True)
    first: Any = await Artifact.aget("key-rotations")

    await refresh(return_state=True)

    async with get_client() as client:
        kept = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["key-rotations"]))
        )
    assert [artifact.created > first.created for artifact in kept if artifact.created] == [True]


async def test_the_overview_deletes_the_terms_that_nobody_reads(services: Services) -> None:
    """A rotation leaves its terms behind; the newest two are kept unchanged."""
    rotation = await deploy(await services.prepare(services.rotation()))
    await rotate(rotation, return_state=True)
    before = await VariableStore(rotation.name).newest()

    await refresh(return_state=True)

    assert len(before) > KEPT_TERMS
    assert await VariableStore(rotation.name).newest() == before[:KEPT_TERMS]


async def test_a_damaged_ledger_is_shown_and_hides_no_other_rotation(services: Services) -> None:
    """A ledger edited by hand, which loses its tag, is reported, and the other rotations are still listed."""
    rotation = await deploy(await services.prepare(services.rotation()))
    other = await deploy(await services.prepare(services.rotation()))
    await rotate(other, return_state=True)
    await edit_ledger(rotation.name, {"format": 99})

    rows = {row.name: row for row in await status.read()}

    await delete_ledger(rotation.name)
    assert "upgrade this worker" in rows[rotation.name].needs
    assert rows[other.name].health is overview.Health.HEALTHY


async def test_the_check_tells_what_does_not_work_and_for_whom(services: Services) -> None:
    """A destination that is down fails the check with one sentence; the table shows every block in use."""
    rotation = await deploy(
        await services.prepare(services.rotation(destinations=["vault-secret/check", "secret/check"]))
    )
    services.vault_app.state.faults.add(Fault(status=503, body='{"errors":["Vault is sealed"]}'))

    state = await check_connections(return_state=True)

    table = await connections()
    assert state.is_failed()
    assert f"vault-secret/check (used by {rotation.name}): Vault at" in str(state.message)
    assert "sealed" in str(state.message)
    assert (table["vault-secret/check"]["works"], table["secret/check"]["works"]) == ("no", "yes")
    assert table[f"openrouter-credentials/{services.connection}"]["works"] == "yes"


async def test_the_check_tells_of_rotations_that_publish_to_one_place(services: Services) -> None:
    """Given two blocks of different names for the same secret, two rotations overwrite each other's key."""
    one, other = (
        services.rotation(destinations=["vault-secret/first"]),
        services.rotation(destinations=["vault-secret/same"]),
    )
    block = services.make("vault-secret")
    for rotation in (one, other):
        await block.model_copy().asave(rotation.destinations[0].partition("/")[2], overwrite=True)
        await deploy(rotation)

    state = await check_connections(return_state=True)

    assert state.is_failed()
    assert (
        f"vault-secret/first (used by {one.name}): Points to the same place as vault-secret/same: {block.place()}. "
        f"The rotations {one.name} and {other.name} overwrite each other's key there."
    ) in str(state.message)


async def test_the_check_tells_when_a_management_key_ends(services: Services) -> None:
    """The warning comes before the management key expires."""
    await deploy(await services.prepare(services.rotation()))
    ends = services.openrouter.accounts[0].management_keys_expire
    ends[DEFAULT_MANAGEMENT_KEY] = datetime.now(UTC) + timedelta(days=3)

    state = await check_connections(return_state=True)

    assert state.is_completed(), state.message
    assert f"The management key of the connection {services.connection} expires at" in str(state.message)


async def test_the_check_and_the_overview_tell_of_an_old_management_key(services: Services) -> None:
    """The age counts from the first check that saw the key, and a new key restarts it."""
    await deploy(await services.prepare(services.rotation()))
    await check_connections(return_state=True)
    name = f"{PREFIX}{services.connection}"
    stored: Any = await Variable.aget(name)
    stored["since"] = (datetime.now(UTC) - timedelta(days=100)).isoformat()
    await Variable.aset(name, stored, overwrite=True)
    warning = f"The management key of the connection {services.connection} has been in use for 100 days"

    old = await check_connections(return_state=True)
    shown: Any = await Artifact.aget(overview.OVERVIEW)
    await Variable.aset(name, {**stored, "fingerprint": "of another key"}, overwrite=True)
    exchanged = await check_connections(return_state=True)

    assert warning in str(old.message)
    assert warning in shown.data
    assert warning not in str(exchanged.message)
    assert DEFAULT_MANAGEMENT_KEY not in str(stored)


async def test_the_age_of_a_connection_that_nobody_uses_is_forgotten(services: Services) -> None:
    """There is no reminder about a management key that no rotation needs."""
    await deploy(await services.prepare(services.rotation()))
    await check_connections(return_state=True)
    stored: Any = await Variable.aget(f"{PREFIX}{services.connection}")
    await Variable.aset(f"{PREFIX}of-nobody", {**stored, "connection": "of-nobody"}, overwrite=True)

    await check_connections(return_state=True)

    assert await Variable.aget(f"{PREFIX}of-nobody") is None
    assert await Variable.aget(f"{PREFIX}{services.connection}") == stored


async def test_the_check_shows_what_each_connection_sees(services: Services) -> None:
    """Missing parts of the account are named beside the existing ones."""
    await deploy(await services.prepare(services.rotation()))
    services.openrouter.lacks = {"byok": 404, "analytics": 403}

    await check_connections(return_state=True)

    details = (await connections())[f"openrouter-credentials/{services.connection}"]["details"]
    assert "It can read workspaces, guardrails, broadcast destinations." in details
    assert "The account lacks, or hides from it, BYOK credentials, analytics." in details


async def test_a_login_that_may_not_look_at_itself_works_all_the_same(services: Services) -> None:
    """If a service hides when a login expires, the expiry is unknown, and nothing is broken."""
    rotation = await deploy(await services.prepare(services.rotation(destinations=["vault-secret/shy"])))
    services.vault_app.state.faults.add(Fault(path="/lookup-self", status=403, body='{"errors":["permission denied"]}'))
    services.openrouter_app.state.faults.add(
        Fault(method="GET", path="/key$", status=403, body='{"error":{"code":403}}')
    )

    state = await check_connections(return_state=True)

    table = await connections()
    assert state.is_completed(), state.message
    assert {entry["login expires"] for entry in table.values()} == {"unknown"}
    assert rotation.name in table["vault-secret/shy"]["used by"]


async def connections() -> dict[str, Any]:
    """Return what the check shows, by block."""
    artifact: Any = await Artifact.aget("connections")
    return {entry["block"]: entry for entry in json.loads(artifact.data)}


async def test_the_check_tells_when_a_token_ends(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning comes before the Vault token expires; a check changes nothing at OpenRouter."""
    rotation = services.rotation(destinations=["vault-secret/ends"])
    monkeypatch.setattr("tests.e2e.conftest.ROOT_TOKEN", services.vault.add_token({"*": {"root"}}, timedelta(days=3)))
    await deploy(await services.prepare(rotation))

    state = await check_connections(return_state=True)

    assert "The login of vault-secret/ends expires at" in str(state.message)
    assert services.openrouter.created == []
