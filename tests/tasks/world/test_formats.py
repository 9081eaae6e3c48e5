"""Ledgers of other versions of this package: newer versions read every older format, older ones refuse newer ones."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest

from blocks.errors import LedgerError, ServiceError
from flows.rotate import follow_protocol
from sandbox.server import Fault
from tasks.model.ledger import FORMAT, Ledger, parse_ledger
from tasks.steps import PLAIN
from tasks.world.open_ledger import prune
from tests.memory import Memory
from tests.tasks.conftest import FakeWorld

STORED = {
    file.stem: json.loads(file.read_text())
    for file in sorted((Path(__file__).parents[1] / "model" / "ledgers").glob("*.json"))
}
"""Ledgers as Prefect stored them, one or more of every format so far. Existing entries never change."""
REFUSAL = (
    "The ledger of rotation checkout was written by a newer version of this package (9.9.9), so nothing was changed: "
    "upgrade this worker."
)


def fields(schema: dict[str, Any]) -> set[str]:
    """Return the names of all fields of a ledger and of the objects in it."""
    return {name for model in (schema, *schema["$defs"].values()) for name in model.get("properties", {})}


def names(value: Any) -> set[str]:
    """Return the names of all fields in a JSON value."""
    if isinstance(value, list):
        return set().union(*map(names, value))
    return set(value).union(*map(names, value.values())) if isinstance(value, dict) else set()


def only(known: set[str], value: Any) -> Any:
    """Return a JSON value without the fields that came later."""
    if isinstance(value, list):
        return [only(known, part) for part in value]
    return (
        {name: only(known, part) for name, part in value.items() if name in known} if isinstance(value, dict) else value
    )


def as_format_1(store: Memory) -> Memory:
    """Return the ledger as an earlier package stored it: in one variable, without terms, and without later fields."""
    before_terms = Memory()
    known = names([v for v in STORED.values() if v["format"] == 1])
    before_terms.terms[0] = {**only(known, store.value), "format": 1}
    return before_terms


async def rotate_and_prune(world: FakeWorld) -> None:
    """Run the protocol once, including the final pruning."""
    run = world.open()
    await follow_protocol(run, world.rotation, PLAIN)
    await prune(world.store, await world.store.newest())


def test_a_ledger_of_every_format_is_kept() -> None:
    """Whoever raises the format keeps the stored ledgers of all former formats here, and adds one of the new."""
    assert {value["format"] for value in STORED.values()} == set(range(1, FORMAT + 1))


def test_the_ledgers_of_this_format_have_every_field() -> None:
    """Together they contain every field, so that the tests below notice a renamed one."""
    stored = [value for value in STORED.values() if value["format"] == FORMAT]

    assert fields(Ledger.model_json_schema(mode="serialization")) - names(stored) == set()


@pytest.mark.parametrize("name", STORED)
def test_a_stored_ledger_is_read_whole(name: str) -> None:
    """Every key, date, budget and policy that an earlier version wrote is still there after reading."""
    assert parse_ledger("checkout", STORED[name]).to_json() == STORED[name]


@pytest.mark.parametrize("stored_format", range(1, FORMAT + 1))
def test_a_removed_rotation_stays_removed_for_a_newer_package(stored_format: int) -> None:
    """Whichever version closed a ledger, its last term must not be read as an existing rotation's."""
    value = {**Ledger().closed().to_json(), "format": stored_format}

    assert parse_ledger("checkout", value).is_closed


async def test_a_ledger_of_format_1_is_carried_on(world: FakeWorld) -> None:
    """The key of an earlier package is superseded with its overlap; no key is lost or created twice."""
    await world.rotate()
    former = await world.held()
    world.store = as_format_1(world.store)

    await world.rotate()

    assert [key.hash for key in world.ledger.superseded] == [former.hash]
    assert set(world.openrouter.keys) == world.ledger.hashes()
    assert world.store.value["format"] == FORMAT


async def test_a_rotation_that_an_earlier_package_began_is_finished(world: FakeWorld) -> None:
    """A Retry with this package deletes the unpublished key, and the rotation has one new key."""
    await world.rotate()
    run_id, first_started = uuid4(), world.time
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body='{"error": {"code": 418}}'))
    await world.failure(world.rotate(run_id=run_id))
    world.app.state.faults.clear()
    world.store = as_format_1(world.store)

    await world.rotate(run_id=run_id, first_started=first_started, attempt=2)

    assert world.ledger.pending is None
    assert len(world.ledger.superseded) == 1
    assert set(world.openrouter.keys) == world.ledger.hashes()


async def test_a_ledger_of_format_1_is_closed_before_it_is_continued(world: FakeWorld) -> None:
    """A run that dies in between has lost nothing, and an earlier package refuses the closed ledger."""
    await world.rotate()
    former = await world.held()
    world.store = as_format_1(world.store)
    dying = mock.AsyncMock(side_effect=ServiceError("The process died."))
    with mock.patch.object(world.store, "create", dying):
        await world.failure(world.rotate())
    closed = world.store.value

    await world.rotate()

    assert closed["format"] == FORMAT
    assert [key.hash for key in world.ledger.superseded] == [former.hash]
    assert set(world.openrouter.keys) == world.ledger.hashes()


async def test_what_a_ledger_of_format_1_said_is_not_taken_for_the_ledger_again(world: FakeWorld) -> None:
    """If a person deletes all terms later, the keys are found by their markers, as without any ledger."""
    await world.rotate()
    world.store = as_format_1(world.store)
    await rotate_and_prune(world)
    await world.rotate()
    for number in [number for number in world.store.terms if number]:
        del world.store.terms[number]

    await world.rotate()

    assert len(world.openrouter.created) == 4
    assert set(world.openrouter.keys) == world.ledger.hashes()


@pytest.mark.parametrize("what", ["rotate", "emergency", "retire", "restore", "apply", "remove", "keep"])
async def test_an_older_package_refuses_a_newer_ledger_and_changes_nothing(world: FakeWorld, what: str) -> None:
    """Every flow fails with one sentence that says what to do; keys, destinations and ledger do not change."""
    await world.rotate()
    world.later(days=2)
    world.store.value = {**world.store.value, "format": FORMAT + 1, "package": "9.9.9", "surprise": True}
    before = world.everything()
    work: dict[str, Callable[[], Awaitable[str]]] = {
        "rotate": world.rotate,
        "emergency": lambda: world.rotate(emergency=True),
        "retire": world.retire,
        "restore": world.restore,
        "apply": world.apply,
        "remove": lambda: world.remove(world.time),
        "keep": lambda: world.remove(None),
    }

    said = await world.failure(work[what]())

    assert said == REFUSAL
    assert world.everything() == before
    assert world.is_deployed


@pytest.mark.parametrize("package", ["", "sk-or-v1-" + "0" * 64, "9.9.9; rm -rf /", None, 7])
def test_a_version_that_is_none_is_not_quoted(package: object) -> None:
    """Anybody may have edited the variable, so it may contain a secret."""
    with pytest.raises(LedgerError) as refused:
        parse_ledger("checkout", {"format": FORMAT + 1, "package": package})

    assert str(refused.value) == REFUSAL.replace(" (9.9.9)", "")
