"""Destinations with and without check-and-set, as one process sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from pydantic import SecretStr

from blocks.destination import Content, Destination
from blocks.errors import (
    ConflictError,
)
from tests.simulation.world.places import ModelContent
from tests.simulation.world.process import Process


class ModelDestination(Destination):
    """A destination, as one process sees it."""

    def __init__(self, process: Process, name: str) -> None:
        self.name = name
        self._process = process
        self._place = process.model.places[name]

    def place(self) -> str:
        """Return the address of the place; the name of the block if that itself is the place."""
        return self._place.at or self.name

    async def read_content(self) -> Content:
        """Read the content."""
        return await self._process.effect(f"read {self.name}", self._content)

    def _content(self) -> Content:
        content = self._place.content
        version = len(self._place.versions) if self._place.checks_and_sets else None
        return ModelContent(None if content is None else SecretStr(content), version, dict(self._place.other_fields))

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:
        """Search the older versions, if there are any."""
        return await self._process.effect(f"read older versions of {self.name}", lambda: self._older(is_wanted))

    def _older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:
        kept = self._place.versions if self._place.checks_and_sets else []
        found = [SecretStr(content) for content in reversed(kept) if content is not None]
        return next((secret for secret in found if is_wanted(secret)), None)

    async def check(self) -> str:
        """Check that the destination can be used."""
        return await self._process.effect(f"try {self.name}", lambda: f"{self.name} works.")

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:
        """Write the content; with check-and-set, it may arrive at any later time."""
        await self._process.effect(
            f"write {self.name}",
            lambda: self._write(value.get_secret_value(), content),
            late=True,
            arrives_within=None if self._place.checks_and_sets else self.late_writes,
            changes=True,
        )

    def _write(self, value: str | None, content: Content) -> None:
        if self._place.checks_and_sets and content.version != len(self._place.versions):
            raise ConflictError(f"{self.name} was changed by somebody else.")
        # As the block does: write back the fields that were read, or read them now.
        self._place.put(value, content.other_fields if isinstance(content, ModelContent) else self._place.other_fields)

    async def fence(self, content: Content) -> Content:
        """Write the content again, so that check-and-set rejects earlier writes that are still to arrive."""
        if self._place.checks_and_sets:
            text = content.value.get_secret_value() if content.value is not None else None
            await self._process.effect(f"fence {self.name}", lambda: self._write(text, content), changes=True)
        return content

    async def aclose(self) -> None:
        """Nothing to close."""


class ModelVault(ModelDestination):
    """A destination with check-and-set, where a fence rejects late writes, so that no run has to wait for them."""

    late_writes = timedelta(0)
