"""Destinations: what a rotation needs of a place where consumers read the current key, and the base of our blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Self

# Internal, but it is what Prefect's own blocks answer by context with. Look again with each new prefect, and take the
# public name when there is one.
from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.blocks.abstract import SecretBlock
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import SecretStr

from blocks.errors import NotFoundError


@dataclass(frozen=True)
class Content:
    """What a destination holds.

    Args:
        value: The secret, or `None` where there is none yet.
        version: The store's version of what was read, for a check-and-set write; `None` where the store has no such
            thing.
    """

    value: SecretStr | None
    version: int | None = None


class Destination(ABC):
    """A place where consumers read the current key; one without versions, unless a subclass says otherwise.

    A write is sent once and given up at a deadline. Where the store compares before it sets, a write that takes effect
    after that is refused; elsewhere it may take effect within `late_writes`.
    """

    late_writes: ClassVar[timedelta] = timedelta(minutes=1)
    """How long after it was given up a write may still take effect; nothing where the store has check-and-set."""

    @abstractmethod
    async def read_content(self) -> Content:
        """Read what the place holds now.

        Returns:
            The secret and its version; a `Content` without a value where nothing is stored yet.

        Raises:
            ServiceError: The place cannot be read.
        """

    @abstractmethod
    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:
        """Store a secret in place of what was read.

        Args:
            value: The secret to store.
            content: What `read_content` returned; a store with check-and-set refuses the write if that has changed.
            written_by: Labels without any secret in them that say who wrote it and when, kept beside the secret where
                the store can do so.

        Raises:
            ConflictError: Somebody else has written since `content` was read.
            ServiceError: The place cannot be written.
        """

    @abstractmethod
    def place(self) -> str:
        """Name the place for messages, without any secret.

        Returns:
            The place in words, the same ones for every block that means it.
        """

    async def fence(self, content: Content) -> Content:
        """Make sure that a write prepared before this moment fails, where the store has check-and-set.

        Args:
            content: What `read_content` returned.

        Returns:
            What the place holds now; the same where the store has no versions.

        Raises:
            ConflictError: Somebody else has written since `content` was read.
            ServiceError: The place cannot be written.
        """
        return content

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:  # noqa: ARG002 - no versions
        """Look for a secret among the versions before the current one, from the newest to the oldest.

        Args:
            is_wanted: Returns whether a version's secret is the one.

        Returns:
            The first one that is wanted; `None` where there is none, or where the store keeps no older versions.

        Raises:
            ServiceError: The place cannot be read.
        """
        return None

    async def check(self) -> str:
        """Prove without writing that the place works right now.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        await self.read_content()
        # Only a write would tell whether it can be written.
        return f"{self.place()} can be read."

    async def login_ends(self) -> datetime | None:
        """Look up when the login ends with which the place is used.

        Returns:
            The end, UTC; `None` where each run logs in anew, or where that is not known.

        Raises:
            KeyRotationError: It cannot be looked up.
        """
        return None

    async def aclose(self) -> None:
        """Close the connections that were opened; nothing where there are none."""
        return


class DestinationBlock(SecretBlock, Destination):
    """A secret block of this project, usable as a destination and, by any flow, as a secret."""

    async def aread_secret(self) -> bytes:
        """Read the secret, in async code.

        Each call has a session of its own, so that one block may be shared between tasks, threads and event loops.

        Returns:
            The secret, UTF-8 encoded.

        Raises:
            NotFoundError: Nothing is stored there yet.
            ServiceError: The place cannot be read.
        """
        async with aclosing(self._apart()) as block:
            content = await block.read_content()
        if content.value is None:
            raise NotFoundError(f"{self.place()} holds no secret yet.")
        return content.value.get_secret_value().encode()

    # The base class declares a coroutine function; Prefect's own blocks answer by context as this one does.
    @async_dispatch(aread_secret)
    def read_secret(self) -> bytes:  # type: ignore[override]
        """Read the secret: at once in sync code, and as `aread_secret`, to be awaited, in async code.

        Returns:
            The secret, UTF-8 encoded.

        Raises:
            NotFoundError: Nothing is stored there yet.
            ServiceError: The place cannot be read.
        """
        return run_coro_as_sync(self.aread_secret())

    async def awrite_secret(self, secret_data: bytes) -> str:
        """Store a secret, in async code.

        Args:
            secret_data: The secret, UTF-8 encoded.

        Returns:
            The place where it is stored, in words.

        Raises:
            ServiceError: The place cannot be written.
        """
        async with aclosing(self._apart()) as block:
            content = await block.read_content()
            await block.write_content(SecretStr(secret_data.decode()), content, {})
        return self.place()

    @async_dispatch(awrite_secret)
    def write_secret(self, secret_data: bytes) -> str:  # type: ignore[override]
        """Store a secret: at once in sync code, and as `awrite_secret`, to be awaited, in async code.

        Args:
            secret_data: The secret, UTF-8 encoded.

        Returns:
            The place where it is stored, in words.

        Raises:
            ServiceError: The place cannot be written.
        """
        return run_coro_as_sync(self.awrite_secret(secret_data))

    @abstractmethod
    def _apart(self) -> Self:
        """Copy the block, without the connections that it has opened."""
