"""What a destination block can do beyond Prefect's `SecretBlock`: tell absent from present, and guard its writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self

# Internal, but it is what Prefect's own blocks answer by context with. Look again with each new prefect, and take the
# public name when there is one.
from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.blocks.abstract import SecretBlock
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import SecretStr

from blocks.errors import NotFoundError


@dataclass(frozen=True)
class Held:
    """What a destination holds.

    Args:
        value: The secret, or `None` where there is none yet.
        version: The store's version of what was read, for a check-and-set write; `None` where the store has no such
            thing.
    """

    value: SecretStr | None
    version: int | None = None


class DestinationBlock(SecretBlock, ABC):
    """A secret block of this project: a place where consumers read the current key."""

    @abstractmethod
    async def read_held(self) -> Held:
        """Read what the place holds now.

        Returns:
            The secret and its version; a `Held` without a value where nothing is stored yet.

        Raises:
            ServiceError: The place cannot be read.
        """

    @abstractmethod
    async def write_held(self, value: SecretStr, held: Held, written_by: Mapping[str, str]) -> None:
        """Store a secret in place of what was read.

        Args:
            value: The secret to store.
            held: What `read_held` returned; a store with check-and-set refuses the write if that has changed since.
            written_by: Labels without any secret in them that say who wrote it and when, kept beside the secret where
                the store can do so.

        Raises:
            ConflictError: Somebody else has written since `held` was read.
            ServiceError: The place cannot be written.
        """

    @abstractmethod
    async def check(self) -> str:
        """Prove that the place can be read right now; `aclose` closes the connection.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """

    async def fence(self, held: Held) -> Held:
        """Make sure that a write prepared before this moment fails, where the store has check-and-set.

        Args:
            held: What `read_held` returned.

        Returns:
            What is held now; the same where the store has no versions.

        Raises:
            ConflictError: Somebody else has written since `held` was read.
            ServiceError: The place cannot be written.
        """
        return held

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:  # noqa: ARG002 - no versions
        """Look for a secret among the versions before the current one, from the newest to the oldest.

        Args:
            is_wanted: Says of a version's secret whether it is the one.

        Returns:
            The first one that is wanted; `None` where there is none, or where the store keeps no older versions.

        Raises:
            ServiceError: The place cannot be read.
        """
        return None

    async def aclose(self) -> None:
        """Close the connections that this block has opened."""

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
            held = await block.read_held()
        if held.value is None:
            raise NotFoundError(f"{self.place()} holds no secret yet.")
        return held.value.get_secret_value().encode()

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
            held = await block.read_held()
            await block.write_held(SecretStr(secret_data.decode()), held, {})
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
    def place(self) -> str:
        """Name the place for messages, without any secret.

        Returns:
            The place in words, the same ones for every block that means it.
        """

    @abstractmethod
    def _apart(self) -> Self:
        """Copy the block, without the connections that it has opened."""
