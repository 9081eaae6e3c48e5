"""Keys as OpenRouter's key management shows them, and what is asked for when one is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

from blocks.redaction import redacted

PAYMENT_REQUIRED = 402
MAX_IDENTIFIER = 200
"""The longest hash or label that is believed; OpenRouter's hashes have 64 characters."""

LimitReset = Literal["daily", "weekly", "monthly"]


def _identifier(value: str) -> str:
    # It is kept in the ledger and shown to people, and a hash becomes part of a path.
    crooked = value in {".", ".."} or not value.isprintable() or set("/\\") & set(value)
    if crooked or len(value) > MAX_IDENTIFIER or redacted(value) != value:
        raise ValueError("not an identifier")
    return value


def _in_utc(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


Identifier = Annotated[str, Field(min_length=1), AfterValidator(_identifier)]
UtcTime = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment as OpenRouter tells it, which is UTC even where it does not say so."""
WholeSecond = Annotated[AwareDatetime, AfterValidator(lambda value: value.astimezone(UTC).replace(microsecond=0))]
"""A moment as OpenRouter takes it: UTC, and no fraction."""


class Answer(BaseModel):
    """Part of an answer: unknown fields are tolerated, missing ones are an error."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # Whoever names a key may have pasted a key there.
        return ()


class ApiKey(Answer):
    """A key as the management API shows it, without its plaintext. Amounts are US dollars, periods those of UTC."""

    hash: Identifier
    name: str
    label: Identifier
    disabled: bool
    limit: Decimal | None
    limit_remaining: Decimal | None = None
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

    def spent(self, reset: str | None) -> Decimal:
        """Sum up what counts towards a limit since it was last reset.

        Args:
            reset: How often the limit is reset: `daily`, `weekly` or `monthly`; `None` for never.

        Returns:
            The usage in US dollars of the current day, week or month, or of the key's whole life where the limit is
            never reset; with the usage of the account's own provider keys (BYOK) where the limit includes it.
        """
        usage, byok_usage = {
            "daily": (self.usage_daily, self.byok_usage_daily),
            "weekly": (self.usage_weekly, self.byok_usage_weekly),
            "monthly": (self.usage_monthly, self.byok_usage_monthly),
        }.get(reset or "", (self.usage, self.byok_usage))
        return usage + byok_usage if self.include_byok_in_limit else usage


class CurrentKey(Answer):
    """A key's own view of itself (`GET /key`)."""

    label: str
    limit: Decimal | None = None
    expires_at: UtcTime | None = None
    is_management_key: bool | None = None
    is_provisioning_key: bool | None = None

    @property
    def manages_keys(self) -> bool:
        """Whether this is a management key; older answers call it a provisioning key."""
        return bool(self.is_management_key or self.is_provisioning_key)


class KeyRequest(BaseModel):
    """What is asked for when a key is created."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    limit: Decimal | None = None
    limit_reset: LimitReset | None = None
    include_byok_in_limit: bool = False
    workspace_id: str | None = None
    creator_user_id: str | None = Field(default=None, min_length=1)
    expires_at: WholeSecond | None = None

    def body(self) -> dict[str, Any]:
        """Spell the request as the API wants it.

        Returns:
            The JSON object; what was left open is left out, so that OpenRouter's own default applies.
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
            # OpenRouter refuses other time zones, and a moment without seconds.
            "expires_at": self.expires_at and f"{self.expires_at:%Y-%m-%dT%H:%M:%SZ}",
        }
        return always | {name: value for name, value in where_given.items() if value is not None}


@dataclass(frozen=True)
class CreatedKey:
    """A key that was just created: the only moment at which its plaintext is known.

    Args:
        secret: The plaintext.
        key: What the management API shows of it.
    """

    secret: SecretStr
    key: ApiKey
