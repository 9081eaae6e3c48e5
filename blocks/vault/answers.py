"""The parts of Vault's answers that a secret reads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Metadata(BaseModel):
    """Which version was read."""

    version: int


class VersionContent(BaseModel):
    """One version of a secret; without data where it was deleted."""

    data: dict[str, Any] | None
    metadata: Metadata


class Version(BaseModel):
    """Whether a version still exists."""

    destroyed: bool


class Versions(BaseModel):
    """All versions of a secret."""

    current_version: int
    versions: dict[int, Version]


class Mounted(BaseModel):
    """An engine, as Vault shows it to any login."""

    path: str
    type: str
    options: dict[str, Any] | None = None


class Written(BaseModel):
    """What Vault answers to a write."""

    version: int
    custom_metadata: dict[str, Any] | None = None
