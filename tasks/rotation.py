"""What a person says about a rotation, and how its keys are named."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from blocks.errors import ConfigurationError
from blocks.openrouter import KeyRequest
from blocks.redaction import redacted

MAX_ROTATION_NAME = 60
MAX_KEY_NAME = 200
"""The longest name of a key at OpenRouter, marker included.

OpenRouter documents no limit for keys; this is the one that it documents for guardrails.
"""
MAX_DESTINATION_NAME = 250
MAX_OVERLAP = timedelta(days=3650)
"""The longest overlap; a date that far away can still be computed."""
MAX_SHOWN_FIELD = 40
"""How much of a field's name is repeated in a message: a person may have invented it."""

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_WORKSPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_DESTINATION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*")
_MARKER = re.compile(r" \[rotation ([a-z0-9-]+) run ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\]$")

Usd = Annotated[
    Decimal,
    # More digits than a JSON number carries would come back from OpenRouter as another amount.
    Field(ge=0, max_digits=15, decimal_places=6, allow_inf_nan=False),
    PlainSerializer(float, when_used="json"),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
"""An amount in US dollars: exact inside, a plain number in forms and JSON."""


def marker(rotation: str, run_id: UUID) -> str:
    """Make the part of a key's name that says which rotation and which flow run made it.

    Args:
        rotation: The rotation's name.
        run_id: The flow run's id, by which the dashboard finds the run.

    Returns:
        The marker, which stands at the end of the key's name.
    """
    return f" [rotation {rotation} run {run_id}]"


def read_marker(key_name: str) -> tuple[str, UUID] | None:
    """Read the marker from the name of a key at OpenRouter.

    Args:
        key_name: The key's name.

    Returns:
        The rotation's name and the flow run's id, or `None` for a key that no rotation made.
    """
    found = _MARKER.search(key_name)
    return (found[1], UUID(found[2])) if found else None


def is_slug(value: str) -> bool:
    """Say whether a text can name a rotation or a block.

    Args:
        value: The text.

    Returns:
        Whether it is lowercase letters and digits in words joined by single dashes, and not too long.
    """
    return bool(_SLUG.fullmatch(value)) and len(value) <= MAX_ROTATION_NAME


def _slug(value: str, what: str) -> str:
    if not is_slug(value):
        raise ValueError(
            f"{what} must be 1 to {MAX_ROTATION_NAME} lowercase letters and digits, in words joined by single dashes"
        )
    return value


def _block_name(value: str) -> str:
    return _slug(value, "the name of a block")


class KeySettings(BaseModel):
    """The key as consumers get it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(title="Key name", description="How the key is called at OpenRouter; date and marker are added.")
    limit_usd: Usd | None = Field(
        default=None, title="Spending limit (USD)", description="The most that the key may spend; empty for no limit."
    )
    limit_reset: Literal["none", "daily", "weekly", "monthly"] = Field(
        default="none", title="Limit reset", description="When the spending starts again from zero (UTC)."
    )
    include_byok_in_limit: bool = Field(
        default=False,
        title="Include BYOK in the limit",
        description="Whether spending on your own provider keys counts towards the limit.",
    )
    workspace_id: str | None = Field(
        default=None, title="Workspace", description="The OpenRouter workspace; empty for the account's default one."
    )

    @field_validator("name")
    @classmethod
    def _readable(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("must be a readable name, not empty and without line breaks")
        return value.strip()

    @field_validator("workspace_id")
    @classmethod
    def _workspace_is_id(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        if not _WORKSPACE.fullmatch(value):
            raise ValueError("must be a workspace's id or slug: letters, digits and dashes")
        return value

    @model_validator(mode="after")
    def _reset_needs_limit(self) -> Self:
        if self.limit_reset != "none" and self.limit_usd is None:
            raise ValueError("limit_reset needs a limit_usd to reset")
        return self


class Rotation(BaseModel):
    """One named key that is kept fresh."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(title="Rotation name", description="A short name: lowercase letters, digits and dashes.")
    description: str = Field(default="", title="Description", description="What the key is for, and who uses it.")
    connection: str = Field(
        title="Connection", description="The name of the openrouter-credentials block that holds the management key."
    )
    key: KeySettings = Field(title="Key", description="The key as consumers get it.")
    destinations: list[str] = Field(
        title="Destinations",
        description="Where consumers read the key: secret blocks, each as block-type-slug/block-name.",
        examples=[["secret/openrouter-api-key", "vault-secret/checkout"]],
    )
    overlap: timedelta = Field(
        default=timedelta(hours=24),
        title="Overlap",
        description="How long a superseded key stays valid, such as PT24H or P7D; PT0S revokes it at once.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_slug(cls, value: str) -> str:
        return _slug(value, "it")

    @field_validator("connection")
    @classmethod
    def _connection_is_block_name(cls, value: str) -> str:
        return _block_name(value)

    @field_validator("destinations")
    @classmethod
    def _destinations_are_blocks(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("at least one destination is needed")
        for name in value:
            if not _DESTINATION.fullmatch(name) or len(name) > MAX_DESTINATION_NAME:
                raise ValueError("each destination must be <block type slug>/<block name>, such as secret/my-key")
        if len(set(value)) != len(value):
            raise ValueError("the same destination is named twice")
        return value

    @field_validator("overlap")
    @classmethod
    def _overlap_is_not_negative(cls, value: timedelta) -> timedelta:
        if value < timedelta(0):
            raise ValueError("must not be negative")
        if value > MAX_OVERLAP:
            raise ValueError(f"must not be longer than {MAX_OVERLAP.days} days")
        return value

    @model_validator(mode="after")
    def _key_name_fits(self) -> Self:
        room = MAX_KEY_NAME - len(" 2000-01-01") - len(marker(self.name, UUID(int=0)))
        if len(self.key.name) > room:
            raise ValueError(f"key.name must not be longer than {room} characters, so that date and marker fit")
        return self

    def key_request(self, run_id: UUID, today: datetime) -> KeyRequest:
        """Say which key to ask OpenRouter for.

        Args:
            run_id: The flow run that makes the key.
            today: The current moment, UTC; its date becomes part of the name.

        Returns:
            The request; the key's name is the user's name, the date, and the marker.
        """
        return KeyRequest(
            name=f"{self.key.name} {today:%Y-%m-%d}{marker(self.name, run_id)}",
            limit=self.key.limit_usd,
            limit_reset=None if self.key.limit_reset == "none" else self.key.limit_reset,
            include_byok_in_limit=self.key.include_byok_in_limit,
            workspace_id=self.key.workspace_id,
        )


def _shown(field: str) -> str:
    """Spell a field's name for a message: a form sends ours, an API caller may send any text, even a key."""
    return "".join(character for character in redacted(field) if character.isprintable())[:MAX_SHOWN_FIELD]


def parse_rotation(value: Any) -> Rotation:
    """Read a rotation from a flow's parameter.

    Args:
        value: A `Rotation`, or its JSON object as a deployment stores it.

    Returns:
        The rotation.

    Raises:
        ConfigurationError: One sentence that names the first wrong field.
    """
    try:
        return Rotation.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = ".".join(["rotation", *(_shown(str(part)) for part in first["loc"])])
        sentence = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{field}: {sentence}. Nothing was created.") from None
