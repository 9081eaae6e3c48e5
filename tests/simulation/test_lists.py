"""Keys in lists of the account: strike each effect of a rotation in turn, and run rotations that share a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from blocks.openrouter.keys import KeyRequest
from blocks.openrouter.lists import ListKind
from flows.rotate import follow_protocol
from tasks.model.decisions import Identity
from tasks.model.rotation import Rotation
from tasks.steps import PLAIN
from tasks.world.open_ledger import OpenLedger
from tasks.world.run import Run
from tests.simulation.runs import play, run_retire
from tests.simulation.watched_rotation import WatchedRotation
from tests.simulation.world.fates import Fate
from tests.simulation.world.ledgers import ModelStore
from tests.simulation.world.lists import ModelList
from tests.simulation.world.model import Model
from tests.simulation.world.orchestrator import ModelWorld
from tests.simulation.world.places import Place
from tests.simulation.world.process import Process

pytestmark = pytest.mark.slow

T = TypeVar("T")
KILLED = (Fate.KILLED_BEFORE, Fate.KILLED_AFTER)
FATES = [fate for fate in Fate if fate not in (Fate.WORKS, Fate.FORBIDDEN)]
"""`FORBIDDEN` is left out: nothing is promised about a list that the management key may not read or change."""
LONGEST_CALL = 0.5
THEIRS = "key-of-somebody-else"


def named_in_lists(rotation: Rotation, overlap: timedelta) -> WatchedRotation:
    """Return a rotation that inherits, with its current key and a foreign one in a list of each kind."""
    key = rotation.key.model_copy(update={"inherit": True})
    watched = WatchedRotation(rotation.model_copy(update={"overlap": overlap, "key": key}))
    watched.model.deployments[rotation.name] = watched.rotation
    assert watched.rotate().succeeded
    watched.model.add_key(THEIRS, KeyRequest(name=THEIRS), "account-1")
    current = current_of(watched)
    for kind in ListKind:
        watched.model.lists[kind] = ModelList(kind, kind, "account-1", (THEIRS, current))
    return watched


def current_of(watched: WatchedRotation) -> str:
    """Return the hash of the current key."""
    ledger = watched.model.ledger(watched.rotation.name)
    assert ledger is not None
    assert ledger.current is not None
    return ledger.current.hash


def effects_of(rotation: Rotation, overlap: timedelta) -> list[str]:
    """Return the effects of a rotation without faults."""
    watched = named_in_lists(rotation, overlap)
    seen: list[str] = []

    def works(effect: str) -> Fate:
        seen.append(effect)
        return Fate.WORKS

    watched.model.fate = works
    assert watched.rotate().succeeded
    return seen


def retire(watched: WatchedRotation) -> bool:
    """Run the retirement after the end of every overlap, and return whether it succeeded."""
    watched.model.time += timedelta(days=2)
    return play(run_retire(watched.model, watched.rotation.name, Identity(uuid4(), watched.model.time))).succeeded


def check_lists(watched: WatchedRotation) -> None:
    """Check that each list names the foreign key, the current one, and no other."""
    current = current_of(watched)
    for which in watched.model.lists.values():
        assert set(which.hashes or ()) == {THEIRS, current}, watched.model.story


@pytest.mark.parametrize("again", ["retry", "new run"])
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("overlap", [timedelta(0), timedelta(hours=24)], ids=["at once", "overlap"])
def test_one_struck_effect_leaves_lists_right(rotation: Rotation, overlap: timedelta, fate: Fate, again: str) -> None:
    """Whatever happens to any one effect, the next run leaves the current key in both lists, and no dead one."""
    for at in range(len(effects_of(rotation, overlap))):
        watched, run_id = named_in_lists(rotation, overlap), uuid4()

        watched.strike(at, fate)
        ended = watched.rotate(run_id)
        watched.calm()
        healed = watched.rotate(run_id, attempt=2) if again == "retry" else watched.rotate()

        assert healed.succeeded, (at, ended, healed, watched.model.story)
        assert retire(watched)
        check_lists(watched)


@pytest.mark.parametrize("fate", KILLED, ids=lambda fate: fate.name.lower())
def test_a_kill_at_each_change_of_a_list_is_healed(rotation: Rotation, fate: Fate) -> None:
    """A run killed before or after any change of a list, addition or removal, is finished by the next run."""
    effects = effects_of(rotation, timedelta(0))
    changes = [at for at, effect in enumerate(effects) if effect == "replace a list"]

    for at in changes:
        watched = named_in_lists(rotation, timedelta(0))
        watched.strike(at, fate)
        watched.rotate()
        watched.calm()
        assert watched.rotate().succeeded
        assert retire(watched)
        check_lists(watched)

    assert len(changes) == 2 * len(ListKind)


class Turns:
    """A scheduler of concurrent processes: each call takes a random time, and the first to be ready continues."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311
        self._clocks: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def begin(self, names: Sequence[str]) -> None:
        """Register the processes; none continues until all of them wait."""
        self._clocks = dict.fromkeys(names, 0.0)

    async def take(self, name: str, seconds: float | None = None) -> None:
        """Wait for the turn of a process, after a call or a sleep."""
        self._clocks[name] += self._random.uniform(0.001, LONGEST_CALL) if seconds is None else seconds
        self._waiting[name] = asyncio.get_running_loop().create_future()
        self._go_on()
        await self._waiting[name]

    def end(self, name: str) -> None:
        """Remove a process that has ended, so that the others continue."""
        del self._clocks[name]
        self._go_on()

    def _go_on(self) -> None:
        asleep = {name for name, waits in self._waiting.items() if not waits.done()}
        if self._clocks and asleep == set(self._clocks):
            first = min(self._clocks, key=lambda name: self._clocks[name])
            self._waiting[first].set_result(None)


class OneOfSeveral(Process):
    """A process without the check I5, because the model counts the ledger writes of all rotations together."""

    async def effect(self, what: str, do: Callable[[], T], *, changes: bool = False, **how: Any) -> T:
        """Perform an effect, without checking that no other run has taken over."""
        return await super().effect(what, do, **how)


class SleepingWorld(ModelWorld):
    """A world in which a wait delays only one process."""

    def __init__(self, process: Process, turns: Turns) -> None:
        super().__init__(process)
        self._turns, self._name = turns, process.name

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._turns.take(self._name, seconds)


async def at_once(model: Model, rotations: Sequence[Rotation], seed: int) -> list[str]:
    """Run rotations concurrently, interleaved as the seed decides."""
    turns = Turns(seed)
    turns.begin([rotation.name for rotation in rotations])

    async def one(rotation: Rotation) -> str:
        process = OneOfSeveral(model, rotation.name)
        process.gate = lambda _effect: turns.take(rotation.name)
        identity = Identity(uuid4(), model.time)
        model.runs.add(identity.id)
        ledger = OpenLedger(rotation.name, ModelStore(process, rotation.name), identity.id)
        try:
            return await follow_protocol(
                Run(rotation.name, identity, ledger, SleepingWorld(process, turns)), rotation, PLAIN
            )
        finally:
            turns.end(rotation.name)

    return list(await asyncio.gather(*(one(rotation) for rotation in rotations)))


@pytest.mark.parametrize("seed", range(40))
async def test_rotations_that_share_a_list_lose_nobody(rotation: Rotation, seed: int) -> None:
    """However the calls of three rotations interleave, the list ends with all current keys and no dead one.

    Each call takes up to half a second, so that one rotation often writes the list between another's read and write.
    """
    model = Model()
    names = ("checkout", "search", "billing")
    key = rotation.key.model_copy(update={"inherit": True})
    rotations = [
        rotation.model_copy(
            update={"name": name, "destinations": [f"vault-secret/{name}"], "overlap": timedelta(0), "key": key}
        )
        for name in names
    ]
    model.places = {f"vault-secret/{name}": Place() for name in names}
    model.deployments = {each.name: each for each in rotations}
    await at_once(model, rotations, seed)
    model.add_key(THEIRS, KeyRequest(name=THEIRS), "account-1")
    model.lists["shared"] = ModelList("shared", ListKind.BYOK, "account-1", (THEIRS, *currents(model, names)))

    for again in range(3):
        await at_once(model, rotations, seed + 1_000 * again)

        assert set(model.lists["shared"].hashes or ()) == {THEIRS, *currents(model, names)}, model.story


def currents(model: Model, names: Sequence[str]) -> list[str]:
    """Return the hashes of the current keys of some rotations."""
    ledgers = [model.ledger(name) for name in names]
    return [ledger.current.hash for ledger in ledgers if ledger and ledger.current]
