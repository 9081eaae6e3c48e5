"""Keys as OpenRouter's management API shows them, and the request that creates one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

from blocks.foreign import harmless
from blocks.redaction import redacted

PAYMENT_REQUIRED = 402
MAX_IDENTIFIER = 200
"""The longest hash or label; OpenRouter's hashes have 64 characters."""

UNNAMED = "unnamed"
_USUAL_LABEL = re.compile(r"sk-or-[\w-]{0,12}\.\.\.[\w-]{0,12}")
LimitReset = Literal["daily", "weekly", "monthly"]


class Standing(StrEnum):
    """What using a key shows about it; only `REFUSED` is false."""

    REFUSED = ""
    VALID = "valid"
    NO_BUDGET = "valid, but no budget"


def _identifier(value: str) -> str:
    # It is stored in the ledger and displayed, and a hash becomes part of a path.
    crooked = value in {".", ".."} or not value.isprintable() or set("/\\") & set(value)
    if crooked or len(value) > MAX_IDENTIFIER or redacted(value) != value:
        raise ValueError("not an identifier")
    return value


def _label(value: str) -> str:
    # A person may have named a key of nobody's rotation anyhow, and that must not keep the list from being read.
    return value if _USUAL_LABEL.fullmatch(value) else harmless(value, MAX_IDENTIFIER) or UNNAMED


def _in_utc(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


Label = Annotated[str, AfterValidator(_label)]
"""A key's label as it can be shown: documented as a text, in practice the beginning and the end of the key."""
Identifier = Annotated[str, Field(min_length=1), AfterValidator(_identifier)]
UtcTime = Annotated[datetime, AfterValidator(_in_utc)]
"""A time as OpenRouter sends it: UTC, even without an offset."""
WholeSecond = Annotated[AwareDatetime, AfterValidator(lambda value: value.astimezone(UTC).replace(microsecond=0))]
"""A time as OpenRouter accepts it: UTC, without a fraction of a second."""


class Answer(BaseModel):
    """Part of a response: unknown fields are ignored, missing ones are an error."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # A person may have pasted a key into a name.
        return ()


class ApiKey(Answer):
    """A key as the management API shows it, without its plaintext. Amounts are in US dollars, periods in UTC."""

    hash: Identifier
    name: str
    label: Label
    disabled: bool
    limit: Decimal | None
    limit_reset: str | None
    include_byok_in_limit: bool
    usage: Decimal
    usage_daily: Decimal = Decimal(0)
    usage_weekly: Decimal = Decimal(0)
    usage_monthly: Decimal = Decimal(0)
    byok_usage: Decimal = Decimal(0)
    byok_usage_daily: Decimal = Decimal(0)
    byok_usage_weekly: Decimal = Decimal(0)
    byok_usage_monthly: Decimal = Decimal(0)
    created_at: UtcTime
    creator_user_id: str | None = None
    expires_at: UtcTime | None = None
    last_used_at: UtcTime | None = None
    workspace_id: Identifier | None = None

    def is_live(self, now: datetime) -> bool:
        """Return whether the key is neither disabled nor expired.

        Args:
            now: The current time, UTC.
        """
        return not self.disabled and (self.expires_at is None or self.expires_at > now)

    def spent(self, reset: str | None) -> Decimal:
        """Return the usage that counts towards the limit since its last reset.

        Args:
            reset: The reset interval: `daily`, `weekly` or `monthly`; `None` for never.

        Returns:
            The usage in US dollars in the current day, week or month, or in the key's whole lifetime without a reset;
            it includes the usage of the account's own provider keys (BYOK) if the limit does.
        """
        usage, byok_usage = {
            "daily": (self.usage_daily, self.byok_usage_daily),
            "weekly": (self.usage_weekly, self.byok_usage_weekly),
            "monthly": (self.usage_monthly, self.byok_usage_monthly),
        }.get(reset or "", (self.usage, self.byok_usage))
        return usage + byok_usage if self.include_byok_in_limit else usage


class Workspace(Answer):
    """A workspace of the account.

    `io_logging_api_key_ids` are ids that no other endpoint shows; `None` means every key.
    """

    id: Identifier
    is_observability_io_logging_enabled: bool = False
    io_logging_api_key_ids: tuple[int, ...] | None = None

    @property
    def logs_chosen_keys(self) -> bool:
        """Whether it logs the use of chosen keys only."""
        return self.is_observability_io_logging_enabled and self.io_logging_api_key_ids is not None


class CurrentKey(Answer):
    """A key's own view of itself (`GET /key`).

    Nothing reads `label`: it shows that the answer is about a key, which is all that tells that a key is accepted.
    """

    label: str
    expires_at: UtcTime | None = None
    is_management_key: bool | None = None
    is_provisioning_key: bool | None = None

    @property
    def manages_keys(self) -> bool:
        """Whether this is a management key; older responses call it a provisioning key."""
        return bool(self.is_management_key or self.is_provisioning_key)


class KeyRequest(BaseModel):
    """The request that creates a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    limit: Decimal | None = None
    limit_reset: LimitReset | None = None
    include_byok_in_limit: bool = False
    workspace_id: str | None = None
    creator_user_id: str | None = Field(default=None, min_length=1)
    expires_at: WholeSecond | None = None

    def body(self) -> dict[str, Any]:
        """Return the request's JSON body.

        Returns:
            The JSON object, without the fields that were not given, so that OpenRouter's defaults apply.
        """
        always: dict[str, Any] = {
            "name": self.name,
            "limit": self.limit,
            "limit_reset": self.limit_reset,
            "include_byok_in_limit": self.include_byok_in_limit,
        }
        where_given = {
            "workspace_id": self.workspace_id,
            "creator_user_id": self.creator_user_id,
            # OpenRouter rejects other time zones, and times without seconds.
            "expires_at": self.expires_at and f"{self.expires_at:%Y-%m-%dT%H:%M:%SZ}",
        }
        return always | {name: value for name, value in where_given.items() if value is not None}


@dataclass(frozen=True)
class CreatedKey:
    """A newly created key; only the response to its creation holds the plaintext.

    Args:
        secret: The plaintext.
        key: The key as the management API shows it.
    """

    secret: SecretStr
    key: ApiKey
