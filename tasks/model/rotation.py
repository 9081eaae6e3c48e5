"""What a person says about a rotation, and how its keys are named."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from blocks.errors import ConfigurationError
from blocks.redaction import redacted
from tasks.model.keys import marker
from tasks.model.terms import Terms, Usd

MAX_ROTATION_NAME = 60
MAX_KEY_NAME = 200
"""The longest name of a key at OpenRouter, marker included: a guess.

OpenRouter documents no limit for keys; this is the one that it documents for guardrails. Should it cut a name earlier,
the marker at the beginning survives, and `verify-key` refuses the key before anything is published.
"""
MAX_DESTINATION_NAME = 250
MAX_DESTINATION_NAMES = 1_000
"""How long the names of all destinations may be together, so that the ledger has room for them and for several keys."""
MAX_OVERLAP = timedelta(days=3650)
"""The longest overlap; a date that far away can still be computed."""
EXPIRY_MARGIN = timedelta(days=1)
"""How much longer than interval and overlap a key with an end must live, so that a failed rotation can be put right."""
MAX_SHOWN_FIELD = 40
"""How much of a field's name is repeated in a message: a person may have invented it."""

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_HASH = re.compile(r"[A-Za-z0-9_-]{1,200}")
_WORKSPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_DESTINATION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*")


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


Period = Annotated[timedelta, AfterValidator(_bounded)]
"""A length of time that a person chooses: not negative, and such that a date that far away can still be computed."""
Identifier = Annotated[str | None, AfterValidator(_identifier)]
"""An id that OpenRouter gave out; empty text counts as none, because that is what a form sends."""


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
    carry_budget: bool = Field(
        default=False,
        title="Carry the budget over",
        description="Whether a new key starts with what is left of the limit, instead of with a fresh one.",
    )
    workspace_id: Identifier = Field(
        default=None, title="Workspace", description="The OpenRouter workspace; empty for the account's default one."
    )
    guardrail_id: Identifier = Field(
        default=None, title="Guardrail", description="The OpenRouter guardrail that every new key gets; empty for none."
    )
    creator_user_id: Identifier = Field(
        default=None, title="Creator", description="The organization's member in whose name keys are made."
    )
    inherit: bool = Field(
        default=False,
        title="Inherit settings",
        description="Whether a new key takes from the current one every setting that is left at its default here.",
    )
    expires_after: Period | None = Field(
        default=None,
        title="Expires after",
        description="When a key dies even if nobody rotates any more, such as P60D; empty for never.",
    )

    @field_validator("name")
    @classmethod
    def _readable(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("must be a readable name, not empty and without line breaks")
        return value.strip()

    @model_validator(mode="after")
    def _reset_needs_limit(self) -> Self:
        if self.limit_reset != "none" and self.limit_usd is None:
            raise ValueError("limit_reset needs a limit_usd to reset")
        if self.carry_budget and self.limit_usd is None and not self.inherit:
            raise ValueError("carry_budget needs a limit_usd to carry over")
        return self

    def terms(self, now: datetime) -> Terms:
        """Say on which terms a key is made now.

        Args:
            now: The current moment, UTC.

        Returns:
            The terms; an end is given to the second, as OpenRouter takes it.
        """
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
        description="Whether the end of the overlap is enough, or the key must also be unused.",
    )
    quiet_time: Period = Field(
        default=timedelta(hours=1),
        title="Quiet time",
        description="For unused: how long the key must have seen no use, such as PT1H.",
    )
    max_overlap: Period = Field(
        default=timedelta(days=7),
        title="Longest overlap",
        description="For unused: when waiting ends, counted from the rotation, such as P7D.",
    )
    on_still_used: Literal["revoke", "keep"] = Field(
        default="revoke",
        title="If still used then",
        description="For unused: revoke the key all the same, or keep it and fail until a person decides.",
    )
    revoke: Literal["delete", "disable-then-delete"] = Field(
        default="delete",
        title="Revoke by",
        description="Delete the key at once, or disable it first, so that restore-key can bring it back.",
    )
    disabled_for: Period = Field(
        default=timedelta(days=7),
        title="Disabled for",
        description="For disable-then-delete: how long the key can be brought back, such as P7D.",
    )

    @model_validator(mode="after")
    def _quiet_time_is_a_time(self) -> Self:
        if self.retire_when == "unused" and not self.quiet_time:
            raise ValueError("retire_when unused needs a quiet_time longer than nothing")
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
    overwrite: list[str] = Field(
        default=[],
        title="Overwrite",
        description="Those of the destinations whose present value is no OpenRouter key, and may be lost all the same.",
    )
    overlap: Period = Field(
        default=timedelta(hours=24),
        title="Overlap",
        description="How long a superseded key stays valid, such as PT24H or P7D; PT0S revokes it at once.",
    )
    retirement: Retirement = Field(
        default=Retirement(),
        title="Retirement",
        description="What happens to a superseded key when its overlap has ended.",
    )
    minimum_age: Period = Field(
        default=timedelta(0),
        title="Minimum age",
        description="A scheduled run leaves a key alone that is younger than this, such as P7D.",
    )
    adopt: str | None = Field(
        default=None,
        title="Adopt a key",
        description="The hash of an existing key that the first rotation replaces; empty to start with a new one.",
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

    def check_expiry(self, interval: timedelta) -> None:
        """Make sure that no key ends before its rotation has replaced it.

        Args:
            interval: The longest time between two scheduled rotations.

        Raises:
            ValueError: `key.expires_after` is shorter than interval, overlap and a margin together.
        """
        longest = self.retirement.max_overlap if self.retirement.retire_when == "unused" else self.overlap
        shortest = interval + longest + EXPIRY_MARGIN
        if self.key.expires_after is not None and self.key.expires_after < shortest:
            raise ValueError(
                f"key.expires_after must not be shorter than interval, overlap and {EXPIRY_MARGIN.days} day together, "
                f"which is {shortest.days} days"
            )

    @model_validator(mode="after")
    def _key_name_fits(self) -> Self:
        room = MAX_KEY_NAME - len(marker(self.name, UUID(int=0))) - len("  2000-01-01")
        if len(self.key.name) > room:
            raise ValueError(f"key.name must not be longer than {room} characters, so that date and marker fit")
        return self

    def key_name(self, run_id: UUID, today: datetime) -> str:
        """Name a key at OpenRouter.

        Args:
            run_id: The flow run that makes the key.
            today: The current moment, UTC; its date becomes part of the name.

        Returns:
            The marker, the user's name for it, and the date.
        """
        return f"{marker(self.name, run_id)} {self.key.name} {today:%Y-%m-%d}"


def check_switch(field: str, value: object) -> None:
    """Refuse what is neither on nor off; the text "false" would count as on otherwise.

    Args:
        field: The flow's parameter, for the message.
        value: What was given.

    Raises:
        ConfigurationError: One sentence that names the field.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{field}: it must be true or false. Nothing was changed.")


def printable(text: str, longest: int) -> str:
    """Spell a text that we did not choose for a message: on one line, cut, and without what looks like a secret.

    Args:
        text: Any text, even a key.
        longest: How many characters of it are shown at most.

    Returns:
        The text for a message.
    """
    return "".join(character for character in redacted(text) if character.isprintable())[:longest]


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
        field = ".".join(["rotation", *(printable(str(part), MAX_SHOWN_FIELD) for part in first["loc"])])
        sentence = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{field}: {sentence}. Nothing was created.") from None
