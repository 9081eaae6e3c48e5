"""The settings of a rotation, and how its keys are named."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from blocks.errors import ConfigurationError
from blocks.redaction import redacted
from tasks.model.durations import PATTERN, read_duration
from tasks.model.keys import marker
from tasks.model.refusals import refusal
from tasks.model.terms import Terms, Usd

MAX_ROTATION_NAME = 60
MAX_KEY_NAME = 200
"""The longest name of a key at OpenRouter, marker included; an assumption.

OpenRouter documents this limit for guardrails, and none for keys. If it cuts a name earlier, the marker in front
survives, and `verify-key` rejects the key before anything is published.
"""
MAX_DESTINATION_NAME = 250
MAX_DESTINATION_NAMES = 1_000
"""The maximum total length of all destination names, so that they and several keys fit into the ledger."""
MAX_OVERLAP = timedelta(days=3650)
"""The longest overlap; times that far ahead can still be computed."""
EXPIRY_MARGIN = timedelta(days=1)
"""How much longer than interval and overlap together a key must be valid, as time to fix a failed rotation."""

_WORDS = "[a-z0-9]+(-[a-z0-9]+)*"
NAME_PATTERN = f"^{_WORDS}$"
"""The name of a rotation or of a block; a regular expression of JSON Schema."""
BLOCK_PATTERN = f"^{_WORDS}/{_WORDS}$"
"""`<block type slug>/<block name>`; a regular expression of JSON Schema."""
DESTINATION_SCHEMA: dict[str, JsonValue] = {"type": "string", "pattern": BLOCK_PATTERN}
"""The JSON Schema of a destination, which a form checks before it is submitted."""

_SLUG = re.compile(_WORDS)
_HASH = re.compile(r"[A-Za-z0-9_-]{1,200}")
_WORKSPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_DESTINATION = re.compile(f"{_WORDS}/{_WORDS}")


def is_slug(value: str) -> bool:
    """Return whether a text is a valid name of a rotation or a block."""
    return bool(_SLUG.fullmatch(value)) and len(value) <= MAX_ROTATION_NAME


def _slug(value: str, what: str) -> str:
    if not is_slug(value):
        raise ValueError(
            f"{what}must be 1 to {MAX_ROTATION_NAME} lowercase letters and digits, in words joined by single dashes"
        )
    return value


def _block_name(value: str) -> str:
    return _slug(value, "the name of a block ")


def _identifier(value: str | None) -> str | None:
    if value is None or not value.strip():
        return None
    if not _WORKSPACE.fullmatch(value):
        raise ValueError("must be an id as OpenRouter shows it: letters, digits and dashes")
    return value


def _bounded(value: timedelta) -> timedelta:
    if value < timedelta(0):
        raise ValueError("must not be negative")
    if value > MAX_OVERLAP:
        raise ValueError(f"must not be longer than {MAX_OVERLAP.days} days")
    return value


Period = Annotated[
    timedelta,
    BeforeValidator(read_duration),
    AfterValidator(_bounded),
    WithJsonSchema({"type": "string", "pattern": PATTERN}),
]
"""A duration in the settings: not negative, and short enough to compute with."""
Identifier = Annotated[str | None, AfterValidator(_identifier)]
"""An id from OpenRouter; empty text, which a form sends, counts as none."""


class KeySettings(BaseModel):
    """The key that consumers get."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(
        title="Key name",
        description="The key's name at OpenRouter; a rotation marker goes before it, and the date after it.",
        json_schema_extra={"pattern": r"\S"},
    )
    limit_usd: Usd | None = Field(
        default=None, title="Limit (USD)", description="Spending limit of the key in US dollars. Empty means no limit."
    )
    limit_reset: Literal["none", "daily", "weekly", "monthly"] = Field(
        default="none", title="Limit reset", description="How often the spent amount is reset to zero (UTC)."
    )
    include_byok_in_limit: bool = Field(
        default=False,
        title="Include BYOK in the limit",
        description="Count spending on your own provider keys (BYOK) towards the limit.",
    )
    carry_budget: bool = Field(
        default=False,
        title="Carry the budget over",
        description="Give a new key only what is left of the limit, instead of the full limit.",
    )
    workspace_id: Identifier = Field(
        default=None,
        title="Workspace",
        description="Id of the OpenRouter workspace. Empty means the account's default workspace.",
    )
    guardrail_id: Identifier = Field(
        default=None,
        title="Guardrail",
        description="Id of the OpenRouter guardrail that every new key gets. Empty means none.",
    )
    creator_user_id: Identifier = Field(
        default=None, title="Creator", description="User id of the organization member for whom keys are created."
    )
    inherit: bool = Field(
        default=False,
        title="Inherit settings",
        description="Copy from the current key the settings left at their default here, and its places in lists.",
    )
    expires_after: Period | None = Field(
        default=None,
        title="Expires after",
        description="How long a key is valid even if it is never rotated again, such as 60d. Empty means unlimited.",
    )

    @field_validator("name")
    @classmethod
    def _readable(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("must not be empty, and must consist of printable characters without line breaks")
        return value.strip()

    @model_validator(mode="after")
    def _reset_needs_limit(self) -> Self:
        if self.limit_reset != "none" and self.limit_usd is None:
            raise ValueError("limit_reset requires limit_usd")
        if self.carry_budget and self.limit_usd is None and not self.inherit:
            raise ValueError("carry_budget requires limit_usd")
        return self

    def terms(self, now: datetime) -> Terms:
        """Return the terms of a key that is created now; OpenRouter accepts an expiry in whole seconds."""
        return Terms(
            limit=self.limit_usd,
            limit_reset=None if self.limit_reset == "none" else self.limit_reset,
            include_byok_in_limit=self.include_byok_in_limit,
            workspace_id=self.workspace_id,
            guardrail_id=self.guardrail_id,
            creator_user_id=self.creator_user_id,
            expires_at=None if self.expires_after is None else (now + self.expires_after).replace(microsecond=0),
        )


class Retirement(BaseModel):
    """What happens to a superseded key when its overlap has ended."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    retire_when: Literal["overlap-ended", "unused"] = Field(
        default="overlap-ended",
        title="Retire when",
        description="Revoke when the overlap has ended, or only when the key is also unused.",
    )
    quiet_time: Period = Field(
        default=timedelta(hours=1),
        title="Quiet time",
        description="For unused: how long the key must not have been used, such as 1h.",
    )
    max_overlap: Period = Field(
        default=timedelta(days=7),
        title="Longest overlap",
        description="For unused: how long to wait at most, counted from the rotation, such as 7d.",
    )
    on_still_used: Literal["revoke", "keep"] = Field(
        default="revoke",
        title="If still used then",
        description="For unused: after the longest overlap, revoke the key, or keep it and fail until you decide.",
    )
    revoke: Literal["delete", "disable-then-delete"] = Field(
        default="delete",
        title="Revoke by",
        description="Delete the key, or disable it first, so that restore-key can still restore it.",
    )
    disabled_for: Period = Field(
        default=timedelta(days=7),
        title="Disabled for",
        description="For disable-then-delete: how long the key can still be restored, such as 7d.",
    )

    @model_validator(mode="after")
    def _quiet_time_is_a_time(self) -> Self:
        if self.retire_when == "unused" and not self.quiet_time:
            raise ValueError("retire_when unused requires a quiet_time longer than zero")
        return self


class Rotation(BaseModel):
    """One named key that is replaced regularly."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(
        title="Rotation name",
        description="A unique name of lowercase letters, digits and dashes.",
        json_schema_extra={"pattern": NAME_PATTERN, "maxLength": MAX_ROTATION_NAME},
    )
    description: str = Field(default="", title="Description", description="What the key is for, and who uses it.")
    connection: str = Field(
        title="Connection",
        description="Name of the openrouter-credentials block with the management key.",
        json_schema_extra={"pattern": NAME_PATTERN},
    )
    key: KeySettings = Field(title="Key", description="The key that consumers get.")
    destinations: list[str] = Field(
        title="Destinations",
        description="Secret blocks from which consumers read the key, each as block-type-slug/block-name.",
        examples=[["secret/openrouter-api-key", "vault-secret/checkout"]],
        json_schema_extra={"items": DESTINATION_SCHEMA, "minItems": 1},
    )
    overwrite: list[str] = Field(
        default=[],
        title="Overwrite",
        description="Destinations whose content may be replaced although it is no OpenRouter key.",
    )
    overlap: Period = Field(
        default=timedelta(hours=24),
        title="Overlap",
        description="How long a superseded key stays valid, such as 24h or 7d. 0h revokes it immediately.",
    )
    retirement: Retirement = Field(
        default=Retirement(),
        title="Retirement",
        description="What happens to a superseded key when its overlap has ended.",
    )
    minimum_age: Period = Field(
        default=timedelta(0),
        title="Minimum age",
        description="A scheduled run does not replace a key that is younger than this, such as 7d.",
    )
    adopt: str | None = Field(
        default=None,
        title="Adopt a key",
        description="Hash of an existing key that the first rotation replaces. Empty means none.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_slug(cls, value: str) -> str:
        return _slug(value, "")

    @field_validator("connection")
    @classmethod
    def _connection_is_block_name(cls, value: str) -> str:
        return _block_name(value)

    @field_validator("destinations")
    @classmethod
    def _destinations_are_blocks(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("must name at least one destination")
        for name in value:
            if not _DESTINATION.fullmatch(name) or len(name) > MAX_DESTINATION_NAME:
                raise ValueError("each destination must be <block type slug>/<block name>, such as secret/my-key")
        if len("".join(value)) > MAX_DESTINATION_NAMES:
            raise ValueError(f"their names together must not be longer than {MAX_DESTINATION_NAMES} characters")
        if len(set(value)) != len(value):
            raise ValueError("the same destination is named twice")
        return value

    @field_validator("overwrite")
    @classmethod
    def _overwrite_names_destinations(cls, value: list[str], others: ValidationInfo) -> list[str]:
        if not set(value) <= set(others.data.get("destinations", value)):
            raise ValueError("each must be one of the rotation's destinations")
        return value

    @field_validator("adopt")
    @classmethod
    def _adopt_is_hash(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        if not _HASH.fullmatch(value) or redacted(value) != value:
            raise ValueError("must be the hash of a key, as OpenRouter's list of keys shows it; never the key itself")
        return value

    @model_validator(mode="after")
    def _times_fit_together(self) -> Self:
        shortest = self.overlap + self.retirement.quiet_time
        if self.retirement.retire_when == "unused" and self.retirement.max_overlap < shortest:
            raise ValueError("retirement.max_overlap must not be shorter than overlap and quiet_time together")
        self.check_expiry(timedelta(0))
        return self

    @property
    def usable_overlap(self) -> timedelta:
        """How long consumers can use a superseded key; a carried budget leaves it nothing to spend."""
        return timedelta(0) if self.key.carry_budget else self.overlap

    def time_to_replace(self, interval: timedelta) -> timedelta:
        """Return how long a key that is left in use must still be valid: until the next run, an overlap, and a margin.

        Args:
            interval: The longest time between two scheduled rotations.
        """
        longest = self.retirement.max_overlap if self.retirement.retire_when == "unused" else self.overlap
        return interval + longest + EXPIRY_MARGIN

    def check_expiry(self, interval: timedelta) -> None:
        """Check that no key expires before its rotation replaces it, although a run has left it in use as too young.

        Args:
            interval: The longest time between two scheduled rotations.

        Raises:
            ValueError: `key.expires_after` is shorter than interval, minimum age, overlap and margin together.
        """
        shortest = self.minimum_age + self.time_to_replace(interval)
        if self.key.expires_after is not None and self.key.expires_after < shortest:
            raise ValueError(
                f"key.expires_after must not be shorter than interval, minimum age, overlap and {EXPIRY_MARGIN.days} "
                f"day together, which is {shortest.days} days"
            )

    @model_validator(mode="after")
    def _key_name_fits(self) -> Self:
        room = MAX_KEY_NAME - len(marker(self.name, UUID(int=0))) - len("  2000-01-01")
        if len(self.key.name) > room:
            raise ValueError(f"key.name must not be longer than {room} characters, so that date and marker fit")
        return self

    def key_name(self, run_id: UUID, today: datetime, installation: str = "") -> str:
        """Return the name of a key at OpenRouter: the marker, the user's name for it, and the date (UTC)."""
        return f"{marker(self.name, run_id, installation)} {self.key.name} {today:%Y-%m-%d}"


def check_switch(field: str, value: object) -> None:
    """Refuse a value that is neither `True` nor `False`, such as the text "false", which would count as true.

    Raises:
        ConfigurationError: The value is invalid; the message names the field.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{field}: must be true or false. Nothing was changed.")


def parse_rotation(value: Any) -> Rotation:
    """Parse a rotation from a flow's parameter: a `Rotation`, or its JSON object as a deployment stores it.

    Raises:
        ConfigurationError: At least one field is invalid; one sentence names each.
    """
    try:
        return Rotation.model_validate(value)
    except ValidationError as error:
        # Leave out the input, which may hold a secret; the rest of an error's context is ours.
        raise refusal(error.errors(include_input=False, include_url=False)) from None
