"""The parts of Vault's responses that `VaultSecret` reads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Metadata(BaseModel):
    """The metadata of a version."""

    version: int


class VersionContent(BaseModel):
    """One version of a secret; without data if it was deleted."""

    data: dict[str, Any] | None
    metadata: Metadata


class Version(BaseModel):
    """The state of a version."""

    destroyed: bool


class Versions(BaseModel):
    """All versions of a secret."""

    current_version: int
    versions: dict[int, Version]


class Mounted(BaseModel):
    """A secrets engine, as Vault shows it to any login."""

    path: str
    type: str
    options: dict[str, Any] | None = None


class Written(BaseModel):
    """The response to a write."""

    version: int
    custom_metadata: dict[str, Any] | None = None
