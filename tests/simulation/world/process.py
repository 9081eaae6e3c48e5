"""A process: every call that leaves it is an effect, which can fail or be the last one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from blocks.errors import (
    ConflictError,
    ForbiddenError,
    KeyRotationError,
    RateLimitedError,
    ServiceError,
    UnavailableError,
)
from tests.simulation.promises import promise
from tests.simulation.world.fates import Fate
from tests.simulation.world.model import LateEffect, Model

T = TypeVar("T")


class Crash(BaseException):
    """The process was killed: nothing after this effect happens."""


REFUSALS = {Fate.FORBIDDEN: ForbiddenError, Fate.CONFLICT: ConflictError, Fate.TOO_MANY: RateLimitedError}
"""The errors with which OpenRouter or a destination refuses a call."""
LOOKED_BEFORE = ("change a key", "assign", "unassign", "fence", "replace a list")
"""Effects exempt from I5, because some steps rely on the ledger check before the previous call."""
PREFECTS = ("ledger", "deployment", "retirement", "look runs up", "installation")
"""Words in the names of requests to Prefect's API; after a refusal, it is unknown whether they took effect."""


class Process:
    """A process that runs steps against the model; after a crash, it performs no more effects."""

    def __init__(self, model: Model, name: str = "run") -> None:
        self.model = model
        self.name = name
        self.dead = False
        self.gate: Callable[[str], Awaitable[None]] | None = None
        self.seen_signatures: int | None = None
        self.begun_changes: list[str] = []
        self.made: set[str] = set()

    async def effect(
        self,
        what: str,
        do: Callable[[], T],
        *,
        late: bool = False,
        arrives_within: timedelta | None = None,
        changes: bool = False,
    ) -> T:
        """Perform an effect, as the model's fate decides.

        Args:
            what: The name of the effect, by which faults target it.
            do: Performs it.
            late: Whether it can take effect after the process has given it up.
            arrives_within: How long after that it can still take effect; without limit by default.
            changes: Whether it changes something that the rotation is responsible for.
        """
        if changes and not what.startswith(LOOKED_BEFORE):
            # An effect that began in time may happen later, but no new one may begin.
            promise(self.seen_signatures == self.model.signatures, f"I5: a run that lost its place began to {what}")
            self.begun_changes.append(what)
        if self.gate is not None:
            await self.gate(what)
        if self.dead:
            raise Crash
        fate = self.model.fate(what)
        if fate is not Fate.WORKS:
            self.model.record(f"    {self.name}: {what}: {fate.value}")
        if fate is Fate.KILLED_BEFORE:
            self.dead = True
            raise Crash
        if fate is Fate.FAILS:
            # A refused create certainly had no effect; for most other failures that is unknown.
            raise UnavailableError(f"{what} failed.", outcome_unknown=not what.startswith("create"))
        if fate in REFUSALS:
            raise _refusal(what, fate)
        if fate is Fate.LATE and late:
            ends = None if arrives_within is None else self.model.time + arrives_within
            self.model.late.append(LateEffect(lambda: self._later(what, do), ends, again=what.startswith("write")))
            raise UnavailableError(f"{what} was not answered.")
        return self._take_effect(what, do, fate)

    def _later(self, what: str, do: Callable[[], T]) -> None:
        self.model.record(f"    {self.name}: {what}: takes effect now")
        # The run has already given up on this call, so nobody receives a refusal.
        with suppress(KeyRotationError):
            do()
        self.model.watch(f"late: {what}")

    def _take_effect(self, what: str, do: Callable[[], T], fate: Fate) -> T:
        try:
            result = do()
        finally:
            self.model.watch(what)
        if fate is Fate.KILLED_AFTER:
            self.dead = True
            raise Crash
        if fate in (Fate.ANSWER_LOST, Fate.LATE):
            raise UnavailableError(f"{what} was not answered.")
        return result


def _refusal(what: str, fate: Fate) -> ServiceError:
    if any(word in what for word in PREFECTS):
        return ServiceError(f"Prefect refused: {what}.", outcome_unknown=True, retryable=True)
    return REFUSALS[fate](f"Refused: {what}.")
