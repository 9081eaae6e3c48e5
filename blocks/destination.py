"""The interface of a destination, where consumers read the current key, and the base class of this project's blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Self

# Internal, but Prefect's own blocks use it to serve sync and async callers. Check each new prefect for a public name.
from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.blocks.abstract import SecretBlock
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import SecretStr

from blocks.errors import NotFoundError
from blocks.http import with_retries
from blocks.login import LoginBlock


@dataclass(frozen=True)
class Content:
    """The content of a destination.

    Args:
        value: The secret; `None` if nothing is stored yet.
        version: The store's version of the content, for a check-and-set write; `None` if the store has no versions.
    """

    value: SecretStr | None
    version: int | None = None


class Destination(ABC):
    """A place where consumers read the current key. Subclasses override the defaults if the store has versions.

    A write is sent once and given up at a deadline. A store with check-and-set refuses a write that arrives after that;
    in any other store, it may still take effect within `late_writes`.
    """

    late_writes: ClassVar[timedelta] = timedelta(minutes=1)
    """How long after its deadline a write may still take effect; zero if the store has check-and-set."""
    in_prefect: ClassVar[bool] = False
    """Whether Prefect's database stores it; an embedded one rejects some of several concurrent writes."""

    @abstractmethod
    async def read_content(self) -> Content:
        """Read the current content.

        Returns:
            The secret and its version; a `Content` without a value if nothing is stored yet.

        Raises:
            ServiceError: The destination cannot be read.
        """

    @abstractmethod
    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:
        """Replace the content that was read by a new secret.

        Args:
            value: The secret to store.
            content: The result of `read_content`; a store with check-and-set refuses the write if it has changed.
            written_by: Labels that say who wrote the secret and when, never with a secret in them; stored next to the
                secret if the store supports that.

        Raises:
            ConflictError: Someone else has written since `content` was read.
            ServiceError: The destination cannot be written.
        """

    @abstractmethod
    def place(self) -> str:
        """Return the name of the place for messages, without any secret.

        Returns:
            The name; equal for all blocks that point to the same place.
        """

    async def fence(self, content: Content) -> Content:
        """Invalidate every write that was prepared earlier, if the store has check-and-set.

        Args:
            content: The result of `read_content`.

        Returns:
            The current content; unchanged if the store has no versions.

        Raises:
            ConflictError: Someone else has written since `content` was read.
            ServiceError: The destination cannot be written.
        """
        return content

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:  # noqa: ARG002 - no versions
        """Search the older versions for a secret, from the newest to the oldest.

        Args:
            is_wanted: Returns whether a secret matches.

        Returns:
            The first match; `None` if there is none, or if the store keeps no older versions.

        Raises:
            ServiceError: The destination cannot be read.
        """
        return None

    async def check(self) -> str:
        """Check, without writing, that the destination works.

        Returns:
            What works, in one sentence.

        Raises:
            KeyRotationError: The destination does not work; the message says why.
        """
        await self.read_content()
        # Only a write would show whether it can be written.
        return f"{self.place()} can be read."

    async def login_ends(self) -> datetime | None:
        """Return when the destination's login expires.

        Returns:
            The expiry, UTC; `None` if each run logs in again, or if it is unknown.

        Raises:
            KeyRotationError: The expiry cannot be looked up.
        """
        return None

    async def aclose(self) -> None:
        """Close the open connections, if any."""
        return


# Prefect's server lists every class in its catalog of blocks, unless the class itself names ABC as a base.
class DestinationBlock(SecretBlock, Destination, ABC):
    """A secret block that rotations use as a destination, and any flow as a secret."""

    credentials: LoginBlock

    async def login_ends(self) -> datetime | None:
        """Return when the login expires; see `Destination`."""
        return await self.credentials.login_ends()

    async def aclose(self) -> None:
        """Close the open connections."""
        await self.credentials.aclose()

    async def aread_secret(self) -> bytes:
        """Read the secret, in async code.

        Each call opens its own session, so a block may be shared between tasks, threads and event loops.

        Returns:
            The secret, UTF-8 encoded.

        Raises:
            NotFoundError: Nothing is stored yet.
            ServiceError: The secret cannot be read.
        """
        async with aclosing(self._apart()) as block:
            content = await block.read_content()
        if content.value is None:
            raise NotFoundError(f"{self.place()} holds no secret yet.")
        return content.value.get_secret_value().encode()

    # The base class declares a coroutine function; like Prefect's own blocks, this one also serves sync callers.
    @async_dispatch(aread_secret)
    def read_secret(self) -> bytes:  # type: ignore[override]
        """Read the secret; in async code, await the result, which is that of `aread_secret`.

        Returns:
            The secret, UTF-8 encoded.

        Raises:
            NotFoundError: Nothing is stored yet.
            ServiceError: The secret cannot be read.
        """
        return run_coro_as_sync(self.aread_secret())

    async def awrite_secret(self, secret_data: bytes) -> str:
        """Store a secret, in async code.

        Args:
            secret_data: The secret, UTF-8 encoded.

        Returns:
            The name of the place where it is stored.

        Raises:
            ServiceError: The secret cannot be written.
        """
        async with aclosing(self._apart()) as block:

            async def attempt() -> None:
                await block.write_content(SecretStr(secret_data.decode()), await block.read_content(), {})

            await with_retries(attempt, repeatable=False)
        return self.place()

    @async_dispatch(awrite_secret)
    def write_secret(self, secret_data: bytes) -> str:  # type: ignore[override]
        """Store a secret; in async code, await the result, which is that of `awrite_secret`.

        Args:
            secret_data: The secret, UTF-8 encoded.

        Returns:
            The name of the place where it is stored.

        Raises:
            ServiceError: The secret cannot be written.
        """
        return run_coro_as_sync(self.awrite_secret(secret_data))

    def _apart(self) -> Self:
        return self.model_copy(update={"credentials": self.credentials.unopened_copy()})
