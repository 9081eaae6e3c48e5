"""The terms of a key at OpenRouter: its limits and their reset, its workspace, its expiry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError, WithJsonSchema

from blocks.openrouter.keys import ApiKey, KeyRequest, LimitReset
from tasks.model.times import Moment

SMALLEST_AMOUNT = Decimal("0.000001")
"""The precision of a limit, in US dollars."""

Usd = Annotated[
    Decimal,
    # More digits than a JSON number can carry would come back as another amount.
    Field(ge=0, max_digits=15, decimal_places=6, allow_inf_nan=False),
    PlainSerializer(float, when_used="json"),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
"""An amount in US dollars: exact internally, a plain number in forms and JSON."""


_RESET: TypeAdapter[LimitReset | None] = TypeAdapter(LimitReset | None)


def settable_reset(key: ApiKey) -> LimitReset | None:
    """Return when a key's limit is reset; `None` also for an interval that OpenRouter shows but does not let set."""
    try:
        return _RESET.validate_python(key.limit_reset)
    except ValidationError:
        return None


def period_end(reset: LimitReset | None, now: datetime) -> datetime | None:
    """Return when a limit is next reset; `None` for never.

    OpenRouter's API reference defines it: the next midnight, Monday's midnight, or the first of the month, UTC.
    """
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match reset:
        case "daily":
            return midnight + timedelta(days=1)
        case "weekly":
            return midnight + timedelta(days=7 - midnight.weekday())
        case "monthly":
            return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        case _:
            return None


class Terms(BaseModel):
    """The terms of a key at OpenRouter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Decimal | None = None
    limit_reset: LimitReset | None = None
    include_byok_in_limit: bool = False
    workspace_id: str | None = None
    guardrail_id: str | None = None
    creator_user_id: str | None = None
    expires_at: Moment | None = None

    @classmethod
    def of(cls, key: ApiKey, guardrail_id: str | None = None) -> Self:
        """Return the terms of a key, with its expiry, which a successor never inherits.

        Args:
            key: The key as OpenRouter shows it.
            guardrail_id: Its guardrail, which OpenRouter does not show with the key.
        """
        return cls(
            limit=key.limit,
            limit_reset=settable_reset(key),
            include_byok_in_limit=key.include_byok_in_limit,
            workspace_id=key.workspace_id,
            guardrail_id=guardrail_id,
            creator_user_id=key.creator_user_id,
            expires_at=key.expires_at,
        )

    def request(self, name: str, carried: Decimal = Decimal(0)) -> KeyRequest:
        """Return the request for a key on these terms, without the guardrail, which a separate call assigns.

        Args:
            name: The key's name.
            carried: US dollars of the limit that former keys have spent.
        """
        limit = self.limit
        if limit is not None and carried:
            # Only as many decimals as a JSON number carries exactly.
            limit = max(Decimal(0), (limit - carried).quantize(SMALLEST_AMOUNT, ROUND_FLOOR))
        return KeyRequest(name=name, limit=limit, **self.model_dump(exclude={"limit", "guardrail_id"}))

    def or_else(self, former: Terms) -> Terms:
        """Return these terms, with the former key's wherever these have a default."""
        named = self.model_dump(exclude_defaults=True)
        if "limit" in named:
            # A limit and its reset belong together.
            named["limit_reset"] = self.limit_reset
        return former.model_copy(update={"expires_at": None, **named})
