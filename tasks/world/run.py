"""One run: who it is, the ledger that it writes, and what it has seen."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import SecretStr

from blocks.destination import Content, Destination
from blocks.errors import (
    ConfigurationError,
    DestinationError,
    ForbiddenError,
    KeyRotationError,
    MissingBlockError,
    OtherAccountError,
    PlaceLostError,
    ServiceError,
    UnauthorizedError,
    concerning,
)
from blocks.openrouter.keys import ApiKey
from blocks.openrouter.lists import KeyList
from tasks.model.decisions import MAYBE, Identity
from tasks.model.keys import fingerprint
from tasks.model.ledger import Ledger
from tasks.model.places import is_same
from tasks.model.records import MadeKey
from tasks.world.open_ledger import OpenLedger
from tasks.world.ports import World

T = TypeVar("T")
LOOK = "read the ledger and the destinations"
"""The first step of a run, in which it changes nothing."""
WRITE_SECONDS = 20.0
"""How long a look at the ledger and one write to a destination may take together; far below the lease of a slot."""


class NewKey:
    """A key that was created and not yet proven to work.

    Args:
        secret: The plaintext.
        record: What the ledger holds of it.
        made: The key as OpenRouter has shown it when it made it; `None` for a key of an earlier run.
    """

    def __init__(self, secret: SecretStr, record: MadeKey, made: ApiKey | None = None) -> None:
        self.secret = secret
        self.record = record
        self.made = made


class VerifiedKey(NewKey):
    """A key that OpenRouter accepted and that has the settings asked for: the only kind that is published."""


async def gather_all(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do several things at once, and wait for all of them even if some fail.

    Raises:
        BaseException: An unexpected error, if there was one.
        KeyRotationError: The one error, or one that tells them all; of its class, if they have one in common.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    ours = [failure for failure in failures if isinstance(failure, KeyRotationError)]
    unexpected = [failure for failure in failures if not isinstance(failure, KeyRotationError)]
    lost = [failure for failure in failures if isinstance(failure, PlaceLostError)]
    if unexpected or lost or len(failures) == 1:
        raise (unexpected or lost or failures)[0]
    if ours:
        kinds = {type(failure) for failure in ours}
        kind = kinds.pop() if len(kinds) == 1 else DestinationError
        raise kind.combine(ours)
    return [result for result in results if not isinstance(result, BaseException)]


class Run:
    """One run of a rotation.

    Args:
        name: The rotation's name.
        identity: Which flow run this is.
        ledger: The rotation's ledger.
        world: The way to everything outside of the process.
    """

    def __init__(self, name: str, identity: Identity, ledger: OpenLedger, world: World) -> None:
        self.name = name
        self.identity = identity
        self._ledger = ledger
        self.world = world
        self.connection = ""
        self.step = LOOK
        self.contents: dict[str, Content] = {}
        self.places: dict[str, str] = {}
        """Where each destination that was read points."""
        self.warnings: list[str] = []
        """Notes that belong into the final message, too."""
        self.notes: list[str] = []
        self.is_idle = False
        """Whether it has found nothing to do, so that the rotation's page stays as it is."""
        self.left_undone: list[KeyRotationError] = []
        """What failed without stopping the run, which fails at its end."""
        self.lists: dict[tuple[str, str | None], list[KeyList]] = {}
        """The lists of keys of a connection and a workspace, as this run last saw them."""
        self.only_for_itself = False
        """Whether it has done nothing that another run was to do, so that the tries of others stay."""
        self._turn = asyncio.Lock()
        self.has_late_writes = False
        """Whether a write of the key that is published may still take effect, because nobody knows its outcome."""

    @property
    def ledger(self) -> Ledger:
        """The ledger as this run last read or wrote it; an empty one before."""
        return self._ledger.ledger

    @property
    def has_ledger(self) -> bool:
        """Whether there is a ledger at all."""
        return self._ledger.exists

    @property
    def has_looked(self) -> bool:
        """Whether the ledger was read."""
        return self._ledger.loaded

    async def load(self) -> Ledger:
        """Read the ledger; `LedgerError` where it is damaged."""
        return await self._ledger.load()

    async def write(self, ledger: Ledger) -> None:
        """Write the ledger before an effect; `PlaceLostError` where another run has written since."""
        await self._ledger.save(ledger)

    async def record(self, ledger: Ledger) -> None:
        """Write the ledger after an effect, where the next effect is preceded by a look of its own."""
        await self._ledger.record(ledger)

    async def guard(self) -> None:
        """Raise `PlaceLostError` where another run has written since this one last read or wrote."""
        await self._ledger.guard()

    async def is_explained(self, key_hash: str) -> bool:
        """Return whether the newest ledger, whoever wrote it, knows a key."""
        return await self._ledger.is_explained(key_hash)

    async def write_to(
        self, place: Destination, value: SecretStr, content: Content, written_by: Mapping[str, str]
    ) -> None:
        """Store a key in a destination: a look at the ledger and one attempt, with one deadline for both.

        An answer that comes late tells of a ledger that has changed meanwhile, so the look may not take long either.

        Raises:
            PlaceLostError: Another run has taken over; nothing was written.
            ServiceError: The place cannot be written, or did not answer in time.
        """
        try:
            async with self._turn if place.in_prefect else nullcontext(), asyncio.timeout(WRITE_SECONDS):
                await self.guard()
                await place.write_content(value, content, written_by)
        except TimeoutError:
            raise ServiceError(
                f"{place.place()} could not be written within {WRITE_SECONDS:.0f} seconds.",
                outcome_unknown=True,
                retryable=True,
            ) from None

    async def longest_late_writes(self, destinations: Iterable[str]) -> timedelta:
        """Return how long after its timeout a write to one of the destinations may still take effect."""
        return max([(await self.world.destination(name)).late_writes for name in destinations], default=timedelta(0))

    def has_left(self, connection: str, error: KeyRotationError) -> bool:
        """Return whether a failure means only that a connection is gone which the rotation no longer uses.

        Such a connection must not keep the rotation from going on with the one that it uses now.

        Returns:
            Whether it may be noted instead of raised.
        """
        if not self.connection:
            return isinstance(error, ConfigurationError)
        left = isinstance(error, ConfigurationError | UnauthorizedError | ForbiddenError | OtherAccountError)
        return left and connection != self.connection

    def note(self, sentence: str) -> None:
        """Remember something for the report that a person should know.

        Args:
            sentence: One sentence without any secret.
        """
        if sentence not in self.notes:
            self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        """Remember something that the final message says, too.

        Args:
            sentence: One sentence without any secret.
        """
        self.note(sentence)
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def places_of(self, destinations: Sequence[str]) -> dict[str, str]:
        """Return where destinations point that this run has read."""
        return {name: self.places[name] for name in destinations}

    async def look(
        self, destinations: Sequence[str], former: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str | None]:
        """Read what the destinations hold.

        Args:
            destinations: The rotation's destinations.
            former: The destinations of a pending key, and where each one pointed then; empty where that is not known.
                What has been left since is read where that is possible.

        Returns:
            The fingerprint of what each one holds; `MAYBE` for a place that can no longer be read.

        Raises:
            KeyRotationError: One of the rotation's destinations cannot be read.
        """
        await self.world.load_blocks(destinations)
        contents = await gather_all([self._read(name) for name in destinations])
        self.contents.update(zip(destinations, contents, strict=True))
        found = {name: fingerprint(self.contents[name].value) for name in destinations}
        for name, place in former.items():
            if name not in destinations:
                found[name] = await self._look_at_former(name, place)
            elif place and not is_same(place, self.places[name]):
                found[place] = MAYBE
        return found

    async def look_again(self, destinations: Sequence[str]) -> None:
        """Read the destinations unless what they hold is known still: recovery writes to them, and forgets it."""
        if not set(destinations) <= set(self.contents):
            await self.look(destinations)

    async def look_where_possible(self, destinations: Sequence[str]) -> dict[str, str | None]:
        """Read what the destinations hold whose blocks were not deleted.

        A deleted block that was given the current key keeps no key alive for ever: no run writes there any more.

        Args:
            destinations: Where consumers read a key.

        Returns:
            The fingerprint of what each one holds.

        Raises:
            KeyRotationError: One of them cannot be read.
        """
        await self.world.load_blocks(destinations)
        there = []
        for name in destinations:
            try:
                await self.world.destination(name)
            except MissingBlockError:
                self.note(
                    f"The block {name} was deleted, so it was not checked which key its consumers have. Take it out "
                    "of the rotation's destinations, or make it again."
                )
            else:
                there.append(name)
        return await self.look(there)

    async def _read(self, name: str) -> Content:
        destination = await self.world.destination(name)
        self.places[name] = destination.place()
        with concerning(name):
            return await destination.read_content()

    async def _look_at_former(self, name: str, place: str) -> str | None:
        try:
            content = await self._read(name)
        except KeyRotationError as error:
            self.note(f"{name} is no longer a destination and cannot be read: {error}")
            return MAYBE
        if place and not is_same(place, self.places[name]):
            return MAYBE
        self.contents[name] = content
        return fingerprint(self.contents[name].value)
