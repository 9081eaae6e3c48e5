"""Rules for two concurrent runs: one is paused while another takes over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from blocks.errors import OtherRunError
from tasks.model.decisions import Identity
from tests.simulation.promises import promise
from tests.simulation.rules.by_hand import ByHand
from tests.simulation.rules.history import Planned
from tests.simulation.runs import (
    Ended,
    play,
    run_apply,
    run_audit,
    run_protocol,
    run_remove,
    run_restore,
    run_retire,
)
from tests.simulation.strategies import (
    NOT_PAUSED_AT,
    Aim,
    aims,
    fates,
    hits,
    others,
    runs,
)
from tests.simulation.watching import COUNTED
from tests.simulation.world.fates import Fate
from tests.simulation.world.process import Process


class Pauses(ByHand):
    """A run is paused, loses its slot, and continues."""

    @rule(pause_at=aims, kind=runs, other=others, planned=fates)
    def paused(self, pause_at: Aim, kind: str, other: str, planned: Planned) -> None:
        """A run is paused, loses its slot to another one, and continues after that one has ended."""
        first = self._identity(emergency=kind == "emergency")
        self.model.record(f"{kind} (run {first.id.int}) will be paused while there comes: {other}")
        if "remove" in (kind, other):
            self.serving.clear()
            self.taken_away = True
        self.interleaved = True
        for ended in play(self._interleaved(kind, first, other, pause_at, planned)):
            self._after(ended)
        self.interleaved = self.taken_away = False
        self._fill_the_form_in_anew()

    @rule(looks=st.integers(0, 3), other=st.sampled_from(["rotate", "emergency", "restore"]))
    def overtaken(self, looks: int, other: str) -> None:
        """Another run overtakes a rotation right before one of its reads of a destination."""
        self.paused(pause_at=("read vault-secret", looks), kind="rotate", other=other, planned=[])

    def _begin(self, kind: str, identity: Identity, process: Process) -> Coroutine[Any, Any, Ended]:
        self._settle_before(kind, identity)
        simple = {"retire": run_retire, "restore": run_restore, "apply": run_apply}
        match kind:
            case "retire" | "restore" | "apply":
                return simple[kind](self.model, "checkout", identity, process)
            case "remove":
                return run_remove(self.model, "checkout", identity, self.model.time, process)
            case "audit":
                return self._audit_to_its_end(identity, process)
            case "person":
                return self._edit_other_fields()
            case _:
                return run_protocol(self.model, self.rotation, identity, process, self.steps)

    def _settle_before(self, kind: str, identity: Identity) -> None:
        # An emergency and a removal revoke keys at once, so a write that arrived later could publish a dead key.
        if identity.emergency or kind == "remove":
            self.model.settle()

    async def _audit_to_its_end(self, identity: Identity, process: Process) -> Ended:
        return (await run_audit(self.model, "openrouter", identity, repair=True, process=process)).ended

    async def _edit_other_fields(self) -> Ended:
        for name in self.rotation.destinations:
            self._edit_another_field(name)
        return Ended(message="a person edited other fields")

    async def _interleaved(
        self, kind: str, first: Identity, other: str, pause_at: Aim, planned: Planned
    ) -> list[Ended]:
        process, paused, go_on = Process(self.model, "paused run"), asyncio.Event(), asyncio.Event()
        seen: Counter[str] = Counter()
        # A Retry of an emergency is an emergency.
        kills = other == "emergency" or (other == "retry" and first.emergency)
        reached = False

        async def gate(effect: str) -> None:
            nonlocal reached
            reached = reached or hits(pause_at, effect, seen)
            seen[effect] += 1
            if reached and not go_on.is_set() and not (kills and effect.startswith(NOT_PAUSED_AT)):
                self.model.record(f"    paused before: {effect}")
                COUNTED["pauses"] += 1
                paused.set()
                await go_on.wait()

        process.gate = gate
        late = asyncio.ensure_future(self._begin(kind, first, process))
        await asyncio.wait([late, asyncio.ensure_future(paused.wait())], return_when=asyncio.FIRST_COMPLETED)
        try:
            quick = await self._meanwhile(first, other, planned)
            has_lost, begun = process.seen_signatures not in (None, self.model.signatures), len(process.begun_changes)
            self._settle_before(kind, first)
            go_on.set()
            ended = await late
        finally:
            late.cancel()
        stopped = isinstance(ended.error, OtherRunError) or len(process.begun_changes) == begun
        promise(not has_lost or stopped, f"I5: a run that lost its place went on: {process.begun_changes[begun:]}")
        return [quick, ended]

    async def _meanwhile(self, first: Identity, other: str, planned: Planned) -> Ended:
        self._fate(planned)
        again = replace(first, attempt=2)
        second = again if other == "retry" else self._identity(emergency=other == "emergency")
        ended = await self._begin(other, second, Process(self.model, "second run"))
        self.model.fate = lambda _effect: Fate.WORKS
        return ended
