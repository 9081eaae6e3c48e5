"""The cost of an audit hardly depends on the size of the account."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import pytest
from pydantic import SecretStr

from blocks.destination import Content
from blocks.errors import NotFoundError
from blocks.openrouter.client import OpenRouterClient
from blocks.openrouter.keys import ApiKey, CurrentKey
from blocks.openrouter.lists import KeyList, ListKind
from flows.show.audit_report import MAX_ROWS, as_table
from sandbox.openrouter_account import OpenRouterSandbox
from tasks.audit.compare import OPEN_AT_ONCE, RUNS_AT_ONCE
from tasks.audit.findings import MOST_KEPT, Finding, Kind, Report
from tasks.model.keys import fingerprint, marker
from tasks.model.ledger import Ledger
from tasks.model.records import Current
from tests.memory import Memory
from tests.tasks.audit.account import found, marked
from tests.tasks.conftest import FakeWorld

pytestmark = pytest.mark.slow


async def test_ten_thousand_keys_cost_one_pass_of_the_list(world: FakeWorld) -> None:
    """Every key is listed once, a hundred to a page with the last one of the page before; nothing else grows."""
    await world.rotate()
    world.openrouter.seed_keys(9_999)
    world.app.state.requests.clear()

    report = await world.audit()

    paths = [path for _, path, *_ in world.app.state.requests]
    assert report.counts is not None
    assert report.counts.seen == 10_000
    assert sum(path.endswith("/keys") for path in paths) <= 102
    assert sum(path.endswith("/workspaces") for path in paths) == 1
    # The lists of keys, and the workspace's logging settings.
    assert len(paths) <= 104 + 3
    assert len(report.findings) == MOST_KEPT + 1
    assert "Further keys of no rotation, not listed: 9899." in report.findings[-1].sentence


async def test_keys_of_another_server_are_listed_up_to_a_number(world: FakeWorld) -> None:
    """A thousand keys of another server must not lead to as many findings, events or requests to Prefect."""
    await world.rotate()
    for _ in range(1_000):
        marked(world, uuid4())
    world.later(hours=2)
    events_before = len(world.events)
    world.runs_asked_for.clear()

    report = await world.audit()

    assert found(report) == {Kind.MARKED_NOT_OURS}
    assert len(report.findings) == MOST_KEPT + 1
    said = " ".join(finding.sentence for finding in report.findings)
    assert "Further keys of other installations, not listed: 900." in said
    assert len(world.events) - events_before == MOST_KEPT + 1
    assert world.runs_asked_for == [RUNS_AT_ONCE] * 5


async def test_the_table_says_how_many_findings_it_does_not_show() -> None:
    """The artifact stays readable, and its table cannot be mistaken for the complete list."""
    findings = tuple(Finding(Kind.ORPHAN, f"Number {number}.") for number in range(MAX_ROWS + 7))

    rows = as_table(Report("openrouter", FakeWorld().time, None, findings))

    assert len(rows) == MAX_ROWS + 1
    assert rows[-1]["details"] == "Further findings, not shown: 7."


class Place:
    """A destination that counts how many of its kind are open."""

    def __init__(self, world: ManyPlaces) -> None:
        self.world = world

    def place(self) -> str:
        """Return its name."""
        return "a place"

    async def read_content(self) -> Content:
        """Read its content."""
        return Content(SecretStr("a key"))


class ManyPlaces(FakeWorld):
    """A world with many rotations, each with its own destination."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.is_open = 0
        self.most_open = 0
        self.is_deployed = False
        for number in range(count):
            store = self.other_stores.setdefault(f"rotation-{number}", Memory())
            entry = Current(
                hash=f"{number:064d}",
                label="sk-or-v1-the...key",
                fingerprint=fingerprint(SecretStr("a key")) or "",
                connection="openrouter",
                since=self.time,
                destinations=(f"secret/number-{number}",),
            )
            store.value = Ledger(current=entry).to_json()

    async def destination(self, name: str) -> Any:
        """Open a rotation's destination."""
        self.is_open += 1
        self.most_open = max(self.most_open, self.is_open)
        return Place(self)

    @asynccontextmanager
    async def separate(self) -> AsyncIterator[ManyPlaces]:
        """Close the opened destinations."""
        yield self
        self.is_open = 0


async def test_only_some_destinations_are_open_at_once() -> None:
    """An audit of hundreds of rotations needs no more sockets and logins at once than an audit of a few."""
    world = ManyPlaces(100)
    world.client = cast("OpenRouterClient", LongAccount([]))

    await world.audit()

    assert world.most_open == OPEN_AT_ONCE
    assert world.is_open == 0


class LongAccount:
    """A connection to an account whose keys are generated on request, and which no destination here holds."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self.keys = keys

    async def about_itself(self) -> CurrentKey:
        """Return the management key."""
        return CurrentKey(label="management key")

    async def list_workspaces(self) -> AsyncIterator[str]:
        """Yield the only workspace."""
        yield "default"

    async def list_keys(self, _workspace_id: str) -> AsyncIterator[ApiKey]:
        """Yield the keys."""
        for key in self.keys:
            yield key

    async def key_lists(self, _kind: ListKind, _workspace_id: str) -> AsyncIterator[KeyList]:
        """Yield no list."""
        for nothing in list[KeyList]():
            yield nothing

    async def get_key(self, _key_hash: str) -> ApiKey:
        """Find no key."""
        raise NotFoundError("There is no such key.")


def keys_of_an_account(count: int) -> Iterator[ApiKey]:
    """Yield keys without a rotation, every second one with the marker of another Prefect server."""
    shown = OpenRouterSandbox()
    shown.seed_keys(1)
    key = shown.show(next(iter(shown.keys.values())))
    for number in range(count):
        name = f"{marker('checkout', uuid4())} elsewhere" if number % 2 else "by hand"
        yield ApiKey.model_validate({**key, "hash": f"{number:064d}", "name": name})


async def peak(count: int) -> int:
    """Return the peak memory of an audit of so many keys, in bytes."""
    world = FakeWorld()
    world.client = cast("OpenRouterClient", LongAccount(keys_of_an_account(count)))
    world.later(days=365)
    tracemalloc.start()
    report = await world.audit()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.counts is not None
    assert report.counts.seen == count
    assert len(report.findings) == 2 * (MOST_KEPT + 1)
    return most


async def test_memory_does_not_grow_with_the_account() -> None:
    """Ten times as many keys, half of them with markers of another server, need about as much memory."""
    await peak(1_000)  # warms up what is created once and kept

    few, many = await peak(1_000), await peak(10_000)

    assert many < 1.5 * few
