"""The base class of the blocks that log in to a secret store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from typing import Self

from prefect.blocks.abstract import CredentialsBlock


# Prefect's server lists every class in its catalog of blocks, unless the class itself names ABC as a base.
class LoginBlock(CredentialsBlock, ABC):
    """A login to a secret store; destinations with the same one share its connection."""

    @abstractmethod
    async def check(self) -> str:
        """Check that the store accepts the login; close the connection with `aclose`.

        Returns:
            What works, in one sentence.

        Raises:
            KeyRotationError: It does not work; the message says why.
        """

    async def login_ends(self) -> datetime | None:
        """Return when the login expires.

        Returns:
            The expiry, UTC; `None` if each run logs in again, or if it is unknown.

        Raises:
            KeyRotationError: The expiry cannot be looked up; the message says why.
        """
        return None

    @abstractmethod
    def unopened_copy(self) -> Self:
        """Return a copy of the block without its open connection.

        Returns:
            The copy, which opens its own connection.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the open connection, if any."""
