"""The analytics of the OpenRouter stand-in: the number of requests by application, model, key and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.openrouter_account import Account, ApiError, StoredKey, period_start, spelled_text, spelled_utc
from sandbox.openrouter_requests import (
    Endpoints,
    body_of,
    check_fields,
    is_any_text,
    is_list_of,
    is_object,
    is_one_of,
    is_text,
    is_uuid,
)

METRICS = ("request_count",)
DIMENSIONS = ("model", "app", "api_key_id")
OPERATORS = {"eq": "scalar", "neq": "scalar", "in": "array", "not_in": "array"}
GRANULARITIES = ("minute", "hour", "day", "week", "month")
DEFAULT_ROWS = 1_000
LONGEST = timedelta(days=31)
"""The period of a query without a time range."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _has(*required: str, **fields: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        there = isinstance(value, dict) and all(name in value for name in required)
        return there and all(check(value[name]) for name, check in fields.items() if name in value)

    return holds


_is_direction = is_one_of(("asc", "desc"))
_are_names = is_list_of(is_any_text, 0, 2)


QUERY = {
    "metrics": is_list_of(is_one_of(METRICS), 1),
    "dimensions": is_list_of(is_one_of(DIMENSIONS), 0, 2),
    "filters": is_list_of(is_object, 0, 20),
    "granularity": is_one_of(GRANULARITIES),
    "limit": _is_number,
    "group_limit": _is_number,
    "time_range": _has("start", "end"),
    "order_by": _has("field", "direction", field=is_any_text, direction=_is_direction),
    "classifier_dimensions": _has("classifier_id", classifier_id=is_uuid, dimension_names=_are_names),
    "classifier_filters": _has("classifier_id", "filters", classifier_id=is_uuid, filters=is_list_of(is_object, 1, 10)),
}


def _bucket(at: datetime, granularity: str) -> datetime:
    match granularity:
        case "minute":
            return at.replace(second=0, microsecond=0)
        case "hour":
            return at.replace(minute=0, second=0, microsecond=0)
        case _:
            return period_start({"day": "daily", "week": "weekly", "month": "monthly"}[granularity], at)


class AnalyticsApi(Endpoints):
    """The endpoints below `/analytics`."""

    async def meta(self, request: Request) -> Response:
        """`GET /analytics/meta`."""
        self.account(request)
        return JSONResponse(
            {
                "data": {
                    "metrics": [
                        {"name": name, "display_label": name, "is_rate": False, "display_format": "number"}
                        for name in METRICS
                    ],
                    "dimensions": [{"name": name, "display_label": name} for name in DIMENSIONS],
                    "operators": [{"name": name, "value_type": kind} for name, kind in OPERATORS.items()],
                    "granularities": [{"name": name, "display_label": name} for name in GRANULARITIES],
                }
            }
        )

    async def query(self, request: Request) -> Response:
        """`POST /analytics/query`."""
        account, body = self.account(request), await body_of(request)
        check_fields(body, QUERY, "metrics")
        start, end = self._range(body.get("time_range"))
        filters = [_checked_filter(one) for one in body.get("filters", [])]
        unresolved = [one["value"] for one in filters if one["field"] == "api_key_id" and not self._resolves(one)]
        filters = [one for one in filters if one["field"] != "api_key_id" or self._resolves(one)]
        dimensions, granularity = body.get("dimensions", []), body.get("granularity")
        rows: Counter[tuple[Any, ...]] = Counter()
        for key, at, use in self._uses(account):
            if not start <= at < end or not all(_holds(one, use | {"api_key_id": key.hash}) for one in filters):
                continue
            date = spelled_text(_bucket(at, granularity)) if granularity else None
            rows[(date, *((use | {"api_key_id": key.name})[name] for name in dimensions))] += 1
        data = [self._row(row, number, dimensions, granularity) for row, number in rows.items()]
        if order := body.get("order_by"):
            by = f"date__{granularity}" if order["field"] == "date" else order["field"]
            data.sort(key=lambda row: (row.get(by) is None, row.get(by)), reverse=order["direction"] == "desc")
        limit = body.get("limit", DEFAULT_ROWS)
        answer: dict[str, Any] = {
            "data": data[:limit],
            "metadata": {"query_time_ms": 1, "row_count": len(data[:limit]), "truncated": len(data) > limit},
        }
        if unresolved:
            answer["warnings"] = ["Some api_key_id values could not be resolved"]
        return JSONResponse({"data": answer})

    def _range(self, asked: dict[str, Any] | None) -> tuple[datetime, datetime]:
        now = self.sandbox.now()
        if asked is None:
            return now - LONGEST, now + timedelta(seconds=1)
        start, end = spelled_utc(asked.get("start")), spelled_utc(asked.get("end"))
        if start is None or end is None:
            raise ApiError(400, "Invalid value for time_range")
        return start, end

    def _resolves(self, one: Mapping[str, Any]) -> bool:
        values = one["value"] if isinstance(one["value"], list) else [one["value"]]
        return all(value in self.sandbox.known_hashes() for value in values)

    def _uses(self, account: Account) -> list[tuple[StoredKey, datetime, dict[str, str | None]]]:
        keys = [key for key in self.sandbox.keys.values() if key.account is account]
        return [(key, at, {"app": app, "model": model}) for key in keys for at, app, model in key.uses]

    @staticmethod
    def _row(row: tuple[Any, ...], number: int, dimensions: list[str], granularity: str | None) -> dict[str, Any]:
        date, *values = row
        shown = dict(zip(dimensions, values, strict=True)) | {"request_count": number}
        return {f"date__{granularity}": date, **shown} if granularity else shown


def _checked_filter(one: dict[str, Any]) -> dict[str, Any]:
    if not is_text(one.get("field")) or one["field"] not in DIMENSIONS or one.get("operator") not in OPERATORS:
        raise ApiError(400, "Invalid value for filters")
    if isinstance(one.get("value"), list) != (OPERATORS[one["operator"]] == "array") or "value" not in one:
        raise ApiError(400, "Invalid value for filters")
    return one


def _holds(one: Mapping[str, Any], use: Mapping[str, Any]) -> bool:
    values = one["value"] if isinstance(one["value"], list) else [one["value"]]
    return (use[one["field"]] in values) is (one["operator"] in ("eq", "in"))
