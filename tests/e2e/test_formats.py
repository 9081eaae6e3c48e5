"""Ledgers of other versions of this package, on a real Prefect server."""

from __future__ import annotations

from datetime import timedelta

from prefect.artifacts import Artifact
from prefect.variables import Variable

from flows import rotate
from tasks.model.ledger import FORMAT, Ledger
from tasks.model.rotation import Rotation
from tasks.world.ledgers import VariableStore, all_ledgers, prune_ledgers
from tests.by_hand import delete_ledger, edit_ledger, ledger_of, ledger_value
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.processes import check_no_outage, check_nothing_leaked, keys_of, traces


def before_terms(rotation: Rotation) -> str:
    """Return the name of the variable with the ledger of format 1."""
    return f"key-rotation-{rotation.name}"


async def put_in_format_1(rotation: Rotation) -> Ledger:
    """Store a rotation's ledger like an earlier package: in one variable, without the package's version."""
    former = await ledger_of(rotation.name)
    value = former.model_copy(update={"format": 1, "package": ""}).to_json()
    await delete_ledger(rotation.name)
    await Variable.aset(before_terms(rotation), value)
    return former


async def test_a_ledger_of_format_1_is_carried_on_in_terms(services: Services) -> None:
    """The earlier package's key is superseded and recorded, and that package now refuses the ledger."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(days=1)))
    assert (await rotate(rotation, return_state=True)).is_completed()
    former = await put_in_format_1(rotation)

    state = await rotate(rotation, return_state=True)
    await prune_ledgers()

    ledger = await ledger_of(rotation.name)
    left_behind = await Variable.aget(before_terms(rotation))
    assert state.is_completed()
    assert former.current is not None
    assert [key.hash for key in ledger.superseded] == [former.current.hash]
    assert {key.hash for key in keys_of(services, rotation)} == ledger.hashes()
    assert [term.value["format"] for term in await VariableStore(rotation.name).newest()] == [FORMAT, FORMAT]
    assert left_behind == {"format": FORMAT, "superseded": [], "removed": True}
    await check_no_outage(services, rotation)
    check_nothing_leaked(services)


async def test_a_rotation_is_listed_once_while_its_ledger_is_in_both_formats(services: Services) -> None:
    """Functions that list all rotations read the newest term, and not the former variable."""
    rotation = await services.prepare(services.rotation())
    assert (await rotate(rotation, return_state=True)).is_completed()
    await put_in_format_1(rotation)
    listed_before = [name async for name, _ in all_ledgers()]

    await rotate(rotation, return_state=True)

    assert listed_before.count(rotation.name) == 1
    assert [value["format"] async for name, value in all_ledgers() if name == rotation.name] == [FORMAT]


async def test_an_older_package_changes_nothing_in_a_newer_ledger(services: Services) -> None:
    """The run fails with one sentence; ledger, keys, destinations and the rotation's page do not change."""
    rotation = await services.prepare(services.rotation())
    assert (await rotate(rotation, return_state=True)).is_completed()
    newer = {**await ledger_value(rotation.name), "format": FORMAT + 1, "package": "99.0.0", "region": "eu"}
    await edit_ledger(rotation.name, newer)
    terms = await VariableStore(rotation.name).newest()
    before, page = await traces(services, rotation), await Artifact.aget(f"rotation-{rotation.name}")

    state = await rotate(rotation, return_state=True)

    shown = await Artifact.aget(f"rotation-{rotation.name}")
    assert state.is_failed()
    assert state.message == (
        f"The ledger of rotation {rotation.name} was written by a newer version of this package (99.0.0), "
        "so nothing was changed: upgrade this worker. "
        "Help: docs/how-to/troubleshooting.md#the-ledger-cannot-be-read-or-written"
    )
    assert await traces(services, rotation) == before
    assert await VariableStore(rotation.name).newest() == terms
    assert page is not None
    assert shown == page
    await delete_ledger(rotation.name)
