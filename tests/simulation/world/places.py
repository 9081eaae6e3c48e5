"""What a destination holds, and every version that it ever held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blocks.destination import Content


@dataclass
class Place:
    """A destination: what it holds, and every version it ever held."""

    checks_and_sets: bool = True
    exists: bool = True
    versions: list[str | None] = field(default_factory=list)
    other_fields: dict[str, str] = field(default_factory=dict)
    at: str = ""

    @property
    def content(self) -> str | None:
        """What consumers read."""
        return self.versions[-1] if self.versions else None

    def put(self, content: str | None, other_fields: Mapping[str, str]) -> None:
        """Store a version, which holds the fields that it is given and no others."""
        self.versions.append(content)
        self.other_fields = dict(other_fields)


@dataclass(frozen=True)
class ModelContent(Content):
    """What a destination holds, with the fields beside the key, as Vault has them."""

    other_fields: Mapping[str, str] = field(default_factory=dict)
