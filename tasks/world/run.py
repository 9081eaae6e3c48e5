"""A run: its identity, its ledger, and what it has read."""

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
    OtherRunError,
    ServiceError,
    UnauthorizedError,
    concerning,
)
from blocks.openrouter.keys import ApiKey
from blocks.openrouter.lists import KeyList
from tasks.model.decisions import UNREADABLE, Identity
from tasks.model.keys import fingerprint
from tasks.model.ledger import Ledger
from tasks.model.places import is_same
from tasks.model.records import MadeKey
from tasks.world.open_ledger import OpenLedger
from tasks.world.ports import World

T = TypeVar("T")
LOOK = "read the ledger and the destinations"
"""The first step of a run, which changes nothing."""
WRITE_SECONDS = 20.0
"""The timeout of a ledger check and a write to a destination together; far below the lease of a slot."""


class NewKey:
    """A key that was created, but is not verified yet.

    Args:
        secret: The plaintext.
        record: Its entry in the ledger.
        made: The key as OpenRouter returned it when this run created or enabled it; `None` otherwise.
    """

    def __init__(self, secret: SecretStr, record: MadeKey, made: ApiKey | None = None) -> None:
        self.secret = secret
        self.record = record
        self.made = made


class VerifiedKey(NewKey):
    """A key that OpenRouter accepts with the requested settings; only such a key is published."""


async def gather_all(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently, and wait for all of them even if some fail.

    Raises:
        BaseException: An unexpected error, if there was one.
        KeyRotationError: The only error, or one that combines all, of the nearest class that they share.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    ours = [failure for failure in failures if isinstance(failure, KeyRotationError)]
    unexpected = [failure for failure in failures if not isinstance(failure, KeyRotationError)]
    lost = [failure for failure in failures if isinstance(failure, OtherRunError)]
    if unexpected or lost or len(failures) == 1:
        raise (unexpected or lost or failures)[0]
    if ours:
        of_ours = [each for each in type(ours[0]).__mro__ if issubclass(each, KeyRotationError)]
        kind = next(each for each in of_ours if all(isinstance(failure, each) for failure in ours))
        raise (DestinationError if kind is KeyRotationError else kind).combine(ours)
    return [result for result in results if not isinstance(result, BaseException)]


class Run:
    """A run of a rotation.

    Args:
        name: The rotation's name.
        identity: Which flow run this is.
        ledger: The rotation's ledger.
        world: Access to everything outside of the process.
    """

    def __init__(self, name: str, identity: Identity, ledger: OpenLedger, world: World) -> None:
        self.name = name
        self.identity = identity
        self._ledger = ledger
        self.world = world
        self.connection = ""
        self.destinations: Sequence[str] = ()
        """Where the rotation publishes, as this run knows it; no other place may stop the run."""
        self.step = LOOK
        self.contents: dict[str, Content] = {}
        self.places: dict[str, str] = {}
        """Where each destination that was read points."""
        self.warnings: list[str] = []
        """Those notes that are also part of the final message."""
        self.notes: list[str] = []
        self.is_idle = False
        """Whether the run has found nothing to do, so that the rotation's page stays as it is."""
        self.failures: list[KeyRotationError] = []
        """Failures that did not stop the run, but fail it at its end."""
        self.lists: dict[tuple[str, str | None], list[KeyList]] = {}
        """The lists of keys by connection and workspace, as this run last read them."""
        self.leaves_other_tries = False
        """Whether this run did no work on behalf of other runs, so that their tries stay."""
        self._turn = asyncio.Lock()
        self.has_late_writes = False
        """Whether a write of the published key may still take effect, because its outcome is unknown."""

    @property
    def ledger(self) -> Ledger:
        """The ledger as this run last read or wrote it; empty before that."""
        return self._ledger.ledger

    @property
    def has_ledger(self) -> bool:
        """Whether the rotation has a ledger."""
        return self._ledger.exists

    @property
    def has_looked(self) -> bool:
        """Whether the ledger was read."""
        return self._ledger.loaded

    async def load(self) -> Ledger:
        """Read the ledger; `LedgerError` if it cannot be read."""
        return await self._ledger.load()

    async def write(self, ledger: Ledger) -> None:
        """Write the ledger before an effect; `OtherRunError` if another run has written since."""
        await self._ledger.save(ledger)

    async def record(self, ledger: Ledger) -> None:
        """Write the ledger after an effect; the next effect is preceded by a check of its own."""
        await self._ledger.record(ledger)

    async def guard(self) -> None:
        """Raise `OtherRunError` if another run has written since this one last read or wrote."""
        await self._ledger.guard()

    async def is_recorded(self, key_hash: str) -> bool:
        """Return whether the newest ledger, whoever wrote it, contains a key."""
        return await self._ledger.is_recorded(key_hash)

    async def write_to(
        self, destination: Destination, value: SecretStr, content: Content, written_by: Mapping[str, str]
    ) -> None:
        """Store a key in a destination: check the ledger and write once, with one timeout for both.

        A slow ledger check may return outdated information, so the timeout includes it.

        Raises:
            OtherRunError: Another run has taken over; nothing was written.
            ServiceError: The destination cannot be written, or did not answer in time.
        """
        try:
            async with self._turn if destination.in_prefect else nullcontext(), asyncio.timeout(WRITE_SECONDS):
                await self.guard()
                await destination.write_content(value, content, written_by)
        except TimeoutError:
            raise ServiceError(
                f"{destination.place()} could not be written within {WRITE_SECONDS:.0f} seconds.",
                outcome_unknown=True,
                retryable=True,
            ) from None

    async def longest_late_writes(self, destinations: Iterable[str]) -> timedelta:
        """Return how long after its timeout a write to one of the destinations may still take effect."""
        return max([(await self.world.destination(name)).late_writes for name in destinations], default=timedelta(0))

    def concerns_former_connection(self, connection: str, error: KeyRotationError) -> bool:
        """Return whether a failure only concerns a connection that the rotation no longer uses.

        Such a connection must not stop the rotation, which uses another one now.

        Returns:
            Whether the failure can be noted instead of raised.
        """
        if not self.connection:
            return isinstance(error, ConfigurationError)
        left = isinstance(error, ConfigurationError | UnauthorizedError | ForbiddenError | OtherAccountError)
        return left and connection != self.connection

    def has_left(self, name: str) -> bool:
        """Return whether a destination is none of those to which the rotation publishes, as this run knows them."""
        return bool(self.destinations) and name not in self.destinations

    def note(self, sentence: str) -> None:
        """Record a sentence for the report.

        Args:
            sentence: One sentence without any secret.
        """
        if sentence not in self.notes:
            self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        """Record a sentence for the report and the final message.

        Args:
            sentence: One sentence without any secret.
        """
        self.note(sentence)
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def places_of(self, destinations: Sequence[str]) -> dict[str, str]:
        """Return where these destinations, which this run has read, point."""
        return {name: self.places[name] for name in destinations}

    def held(self, names: Iterable[str]) -> dict[str, SecretStr | None]:
        """Return what these destinations, which this run has read, hold."""
        return {name: self.contents[name].value for name in names}

    async def read_destinations(
        self, destinations: Sequence[str], former: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str | None]:
        """Read the destinations.

        Args:
            destinations: The rotation's destinations.
            former: The destinations of a pending key, and where each one pointed then; empty if unknown. Those that the
                rotation has left since are read if possible.

        Returns:
            The fingerprint of each one's content; `UNREADABLE` for a place that can no longer be read.

        Raises:
            KeyRotationError: One of the rotation's destinations cannot be read.
        """
        await self.world.load_blocks(destinations)
        contents = await gather_all([self._read(name) for name in destinations])
        self.contents.update(zip(destinations, contents, strict=True))
        found = {name: fingerprint(self.contents[name].value) for name in destinations}
        for name, place in former.items():
            if name not in destinations:
                found[name] = await self._read_former(name, place)
            elif place and not is_same(place, self.places[name]):
                found[place] = UNREADABLE
        return found

    async def read_destinations_once(self, destinations: Sequence[str]) -> None:
        """Read the destinations, unless their content is still known; recovery writes to them, and forgets it."""
        if not set(destinations) <= set(self.contents):
            await self.read_destinations(destinations)

    async def read_existing_destinations(
        self, destinations: Sequence[str], former: Iterable[str] = ()
    ) -> dict[str, str | None]:
        """Read those destinations whose blocks still exist.

        A deleted block must not keep a superseded key alive forever: no run publishes there any more.

        Args:
            destinations: Destinations at which consumers read a key.
            former: Destinations that the rotation has left, which are read if possible.

        Returns:
            The fingerprint of each one's content; `UNREADABLE` for a former one that cannot be read.

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
        return await self.read_destinations(there, dict.fromkeys(former, ""))

    async def _read(self, name: str) -> Content:
        destination = await self.world.destination(name)
        self.places[name] = destination.place()
        with concerning(name):
            return await destination.read_content()

    async def _read_former(self, name: str, place: str) -> str | None:
        try:
            content = await self._read(name)
        except KeyRotationError as error:
            self.note(f"{name} is no destination of this run and cannot be read: {error}")
            return UNREADABLE
        if place and not is_same(place, self.places[name]):
            return UNREADABLE
        self.contents[name] = content
        return fingerprint(self.contents[name].value)
