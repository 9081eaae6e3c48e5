"""The client's part for OpenRouter's analytics: who uses a key.

Source of every path, field and status: OpenRouter's API reference, "Analytics"
(https://openrouter.ai/docs/api-reference/analytics/query).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from blocks.errors import UnexpectedAnswerError
from blocks.foreign import harmless
from blocks.openrouter.answers import parse
from blocks.openrouter.api import ManagementApi
from blocks.openrouter.keys import Answer, UtcTime

COUNT = "request_count"
KEY = "api_key_id"
WHO = ("app", "model")
"""The dimensions that distinguish uses; a query takes two at most."""
FINEST_FIRST = ("minute", "hour", "day")
MAX_ROWS = 1_000
MAX_SHOWN = 80
"""How many characters are shown of the name of an application or a model, which users choose."""

_TIME = TypeAdapter(UtcTime)


@dataclass(frozen=True)
class Use:
    """A use of a key by one application and model.

    Args:
        by: The application and the model, as far as the account distinguishes them.
        last: Start of the latest period with this use, UTC; `None` if unknown.
    """

    by: str
    last: datetime | None


class _Named(Answer):
    name: str


class _Meta(Answer):
    metrics: list[_Named]
    dimensions: list[_Named]
    granularities: list[_Named]


class _Rows(Answer):
    data: list[dict[str, Any]]
    warnings: list[Any] | None = None


class Analytics(ManagementApi):
    """The client's part for the uses of a key."""

    async def uses_of(self, key_hash: str, since: datetime, until: datetime) -> list[Use]:
        """Return by which application and model a key was used, and when last.

        Args:
            key_hash: The key's hash at OpenRouter.
            since: Start of the period, UTC.
            until: End of the period, UTC.

        Returns:
            The uses, the latest first; none if the account cannot tell the uses of one key.

        Raises:
            NotFoundError: The account has no analytics.
            ForbiddenError: The management key may not see them.
            ServiceError: A call failed.
        """
        doing = "reading which analytics there are"
        meta = parse(_Meta, (await self._manage("GET", "analytics/meta", doing)).get("data"), doing)
        dimensions = {one.name for one in meta.dimensions}
        asked = [name for name in WHO if name in dimensions]
        grains = {one.name for one in meta.granularities}
        grain = next((name for name in FINEST_FIRST if name in grains), None)
        if not asked or COUNT not in {one.name for one in meta.metrics}:
            return []
        body: dict[str, Any] = {
            "metrics": [COUNT],
            "dimensions": asked,
            "filters": [{"field": KEY, "operator": "eq", "value": key_hash}],
            "time_range": {"start": _spelled(since), "end": _spelled(until)},
            "limit": MAX_ROWS,
            # The latest first, because rows above the limit are left out.
            **({"granularity": grain, "order_by": {"field": "date", "direction": "desc"}} if grain else {}),
        }
        doing = "asking who uses a key"
        rows = parse(_Rows, (await self._manage("POST", "analytics/query", doing, json_body=body)).get("data"), doing)
        # OpenRouter drops the filter if it does not resolve the hash; the rows are then those of all keys.
        return [] if rows.warnings else _uses(rows.data, asked, f"date__{grain}", doing)


def _uses(rows: list[dict[str, Any]], asked: list[str], date: str, doing: str) -> list[Use]:
    latest: dict[str, datetime | None] = {}
    for row in rows:
        by = " with ".join(harmless(str(row[name]), MAX_SHOWN) for name in asked if row.get(name))
        try:
            at = _TIME.validate_python(row[date]).astimezone(UTC) if row.get(date) else None
        except ValidationError:
            raise UnexpectedAnswerError(
                f"OpenRouter's answer is not as documented while {doing}; malformed: {date}."
            ) from None
        before = latest.get(by)
        latest[by] = max(at, before) if at and before else at or before
    never = datetime.min.replace(tzinfo=UTC)
    uses = [Use(by or "an application that is not named", at) for by, at in latest.items()]
    return sorted(uses, key=lambda use: use.last or never, reverse=True)


def _spelled(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
