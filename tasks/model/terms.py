"""What a key may do at OpenRouter, and until when."""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_FLOOR, Decimal
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from blocks.openrouter.keys import ApiKey, KeyRequest, LimitReset

SMALLEST_AMOUNT = Decimal("0.000001")
"""The smallest part of a US dollar that a limit is given in."""

Usd = Annotated[
    Decimal,
    # More digits than a JSON number carries would come back from OpenRouter as another amount.
    Field(ge=0, max_digits=15, decimal_places=6, allow_inf_nan=False),
    PlainSerializer(float, when_used="json"),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
"""An amount in US dollars: exact inside, a plain number in forms and JSON."""


class Terms(BaseModel):
    """What a key may do at OpenRouter, and until when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Decimal | None = None
    limit_reset: LimitReset | None = None
    include_byok_in_limit: bool = False
    workspace_id: str | None = None
    guardrail_id: str | None = None
    creator_user_id: str | None = None
    expires_at: datetime | None = None

    @classmethod
    def of(cls, key: ApiKey, guardrail_id: str | None = None) -> Self:
        """Say on which terms a key was made.

        Args:
            key: The key, as OpenRouter shows it.
            guardrail_id: Its guardrail, which OpenRouter does not show with the key.

        Returns:
            Its terms, without its end.
        """
        return cls(
            limit=key.limit,
            limit_reset=key.limit_reset,
            include_byok_in_limit=key.include_byok_in_limit,
            workspace_id=key.workspace_id,
            guardrail_id=guardrail_id,
            creator_user_id=key.creator_user_id,
        )

    def request(self, name: str, carried: Decimal = Decimal(0)) -> KeyRequest:
        """Say which key to ask OpenRouter for.

        Args:
            name: The key's name.
            carried: US dollars that the former key has spent of this budget.

        Returns:
            The request; the guardrail is no part of it, because it is assigned by a call of its own.
        """
        limit = self.limit
        if limit is not None and carried:
            # No more decimals than a JSON number carries safely.
            limit = max(Decimal(0), (limit - carried).quantize(SMALLEST_AMOUNT, ROUND_FLOOR))
        return KeyRequest(name=name, limit=limit, **self.model_dump(exclude={"limit", "guardrail_id"}))

    def or_else(self, former: Terms) -> Terms:
        """Take from the former key's terms what these leave open.

        Args:
            former: The terms of the key that is replaced.

        Returns:
            These terms, with the former ones in place of each default.
        """
        named = self.model_dump(exclude_defaults=True)
        if "limit" in named:
            # A reset belongs to its limit.
            named["limit_reset"] = self.limit_reset
        return former.model_copy(update={"expires_at": None, **named})
