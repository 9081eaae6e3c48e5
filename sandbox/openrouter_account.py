"""The state of the OpenRouter stand-in: accounts, keys, guardrails, spending."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from sandbox.openrouter_state import AccountLists, parse_lacks

DEFAULT_MANAGEMENT_KEY = "sk-or-v1-management-key-of-the-local-stand-in"
PREFIX = "/api/v1"
RESETS = ("daily", "weekly", "monthly", None)

UTC_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
"""The API reference requires UTC; the SDK says that a timestamp without seconds is rejected."""


def _one_of(*allowed: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError("not one of the allowed values")
        return value

    return check


def _not_negative(value: Any) -> Any:
    if not value >= type(value)(0):
        raise ValueError("must not be negative")
    return value


SWITCHES: dict[str, Callable[[Any], Any]] = {
    "cost": lambda usd: _not_negative(Decimal(str(usd)).quantize(Decimal("1E-9"))),
    "byok": lambda value: value if isinstance(value, str) else _one_of(True, False)(value),
    "plaintext_in": _one_of("top", "data"),
    "refusals": lambda count: _not_negative(int(count)),
    "lag": lambda seconds: _not_negative(timedelta(seconds=seconds)),
    "with_last_used_at": _one_of(True, False),
    "over_limit_status": _one_of(402, 403),
    "not_management_status": _one_of(401, 403),
    "counts_reassigned": _one_of(True, False),
    "lacks": parse_lacks,
    "unknown_workspace_status": _one_of(None, 400, 404),
    "list_lag": lambda seconds: _not_negative(timedelta(seconds=seconds)),
}
"""The options that can be changed while the stand-in runs, with their JSON parsers."""


def spelled_utc(text: Any) -> datetime | None:
    """Parse a request's timestamp; raise `ApiError` if it is invalid."""
    if text is None:
        return None
    try:
        if UTC_TIMESTAMP.fullmatch(text):
            return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        pass
    raise ApiError(400, "expires_at must be an ISO 8601 timestamp in UTC, with seconds")


def spelled_text(moment: datetime | None) -> str | None:
    """Return a time as OpenRouter writes it."""
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def spelled_number(amount: Decimal | None) -> float | None:
    """Return an amount as OpenRouter writes it."""
    return None if amount is None else float(amount)


class ApiError(Exception):
    """An error response, with OpenRouter's message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclass
class Account:
    """An OpenRouter account."""

    user_id: str
    workspaces: list[str]
    management_keys: set[str]
    management_keys_expire: dict[str, datetime] = field(default_factory=dict)


@dataclass
class StoredKey:
    """A key of an account."""

    secret: str
    hash: str
    account: Account
    name: str
    workspace_id: str
    created_at: datetime
    limit: Decimal | None = None
    limit_reset: str | None = None
    include_byok_in_limit: bool = False
    expires_at: datetime | None = None
    creator_user_id: str | None = None
    disabled: bool = False
    updated_at: datetime | None = None
    last_used_at: datetime | None = None
    guardrail_id: str | None = None
    refusals_left: int = 0
    valid_from: datetime | None = None
    spent: list[tuple[datetime, Decimal]] = field(default_factory=list)
    byok_spent: list[tuple[datetime, Decimal]] = field(default_factory=list)
    uses: list[tuple[datetime, str | None, str]] = field(default_factory=list)
    """The time, application and model of each use."""

    @property
    def label(self) -> str:
        """The shortened key, as OpenRouter shows it."""
        body = self.secret.removeprefix("sk-or-v1-")
        return f"sk-or-v1-{body[:3]}...{body[-4:]}"


def period_start(period: str | None, now: datetime) -> datetime:
    """Return the start of the current `daily`, `weekly` (Monday) or `monthly` period in UTC; `None` has no start."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "daily":
            return day
        case "weekly":
            return day - timedelta(days=day.weekday())
        case "monthly":
            return day.replace(day=1)
        case _:
            return datetime.min.replace(tzinfo=UTC)


class OpenRouterSandbox(AccountLists):
    """The state of the stand-in, which tests read and change.

    Args:
        now: The clock, UTC.
        cost: The cost of a chat completion in USD.
        byok: Whether chat completions are paid with the account's own provider key; a BYOK credential's id restricts
            them to the keys that may use it.
        plaintext_in: Where the response to a create contains the plaintext: `top` (next to data) or `data`.
        refusals: How many times a new key is refused with 401 before it works.
        lag: How long a new key is refused with 401 before it works.
        with_last_used_at: Whether keys show the time of their last use.
        over_limit_status: The status for a key over its limit: 402 or 403.
        not_management_status: The status for a normal key at a management endpoint: 401 or 403.
        counts_reassigned: Whether assigning a key its own guardrail again counts as an assignment.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        cost: Decimal = Decimal("0.001"),
        byok: bool | str = False,
        plaintext_in: Literal["top", "data"] = "top",
        refusals: int = 0,
        lag: timedelta = timedelta(0),
        with_last_used_at: bool = True,
        over_limit_status: int = 402,
        not_management_status: int = 403,
        counts_reassigned: bool = True,
    ) -> None:
        super().__init__(now)
        self.cost = cost
        self.byok = byok
        self.plaintext_in = plaintext_in
        self.refusals = refusals
        self.lag = lag
        self.with_last_used_at = with_last_used_at
        self.over_limit_status = over_limit_status
        self.not_management_status = not_management_status
        self.counts_reassigned = counts_reassigned
        self.keys: dict[str, StoredKey] = {}
        self.by_secret: dict[str, StoredKey] = {}
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.secrets: set[str] = set()
        self.requests_failed = 0
        """The number of refused chat completions, which consumers notice."""
        self.guardrails: dict[str, dict[str, Any]] = {}
        self.accounts: list[Account] = []
        self.add_account(DEFAULT_MANAGEMENT_KEY)

    def change(self, wanted: Mapping[str, Any]) -> None:
        """Change options by name, given as JSON values: all of them or none.

        Args:
            wanted: The constructor's arguments without the clock, with `cost` in USD and `lag` in seconds; `lacks`,
                `unknown_workspace_status`, and `list_lag` in seconds.

        Raises:
            ApiError: An option does not exist, or its value is invalid.
        """
        try:
            values = {name: SWITCHES[name](value) for name, value in wanted.items()}
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            raise ApiError(400, "No such option, or not such a value") from None
        for name, value in values.items():
            setattr(self, name, value)

    def add_account(self, management_key: str) -> Account:
        """Add an account with a management key and a default workspace."""
        account = Account(f"user_{secrets.token_hex(8)}", [str(uuid.uuid4())], {management_key})
        self.accounts.append(account)
        return account

    def live_keys(self) -> list[StoredKey]:
        """Return the keys that are neither deleted, disabled nor expired."""
        # A copy, because a trial asks while the server's thread adds keys.
        return [key for key in list(self.keys.values()) if self._is_live(key)]

    def is_live(self, secret: str) -> bool:
        """Return whether a key works, given its plaintext."""
        key = self.by_secret.get(secret)
        return key is not None and self._is_live(key)

    def _is_live(self, key: StoredKey) -> bool:
        return not key.disabled and (key.expires_at is None or key.expires_at > self.now())

    def seed_keys(self, count: int) -> None:
        """Fill the first account with unmanaged keys."""
        account = self.accounts[0]
        for number in range(count):
            self.add_key(account, {"name": f"seeded {number}"})

    def add_key(self, account: Account, body: dict[str, Any]) -> StoredKey:
        """Create a key from a validated request."""
        limit = body.get("limit")
        key = StoredKey(
            secret=f"sk-or-v1-{secrets.token_hex(32)}",
            hash=secrets.token_hex(32),
            account=account,
            name=body["name"],
            workspace_id=body.get("workspace_id") or account.workspaces[0],
            created_at=self.now(),
            limit=None if limit is None else Decimal(str(limit)),
            limit_reset=body.get("limit_reset"),
            include_byok_in_limit=bool(body.get("include_byok_in_limit")),
            expires_at=spelled_utc(body.get("expires_at")),
            creator_user_id=body.get("creator_user_id") or account.user_id,
            refusals_left=self.refusals,
            valid_from=self.now() + self.lag if self.lag else None,
        )
        self.keys[key.hash] = self.by_secret[key.secret] = key
        self.created.append(key.hash)
        self.secrets.add(key.secret)
        return key

    def delete_key(self, key: StoredKey) -> None:
        """Delete a key."""
        del self.keys[key.hash], self.by_secret[key.secret]
        self.deleted.append(key.hash)

    def usage(self, key: StoredKey, period: str | None = None, *, byok: bool = False) -> Decimal:
        """Return the usage of a key in USD.

        Args:
            key: The key.
            period: The current period; the whole lifetime by default.
            byok: Whether to sum the usage of the account's own provider keys, or the other usage.
        """
        start = period_start(period, self.now())
        return sum((amount for at, amount in (key.byok_spent if byok else key.spent) if at >= start), Decimal(0))

    def known_hashes(self) -> set[str]:
        """Return the hashes of all existing and deleted keys."""
        return {*self.keys, *self.deleted}

    def workspace_is_spent(self, workspace: str) -> bool:
        """Return whether one of a workspace's budgets is too small for another chat completion."""
        names = ("daily", "weekly", "monthly")
        kinds = (False, True) if self.counts_byok(workspace) else (False,)
        keys = [key for key in self.keys.values() if key.workspace_id == workspace]
        for interval, limit in self.budgets.get(workspace, {}).items():
            period = interval if interval in names else None
            if sum(self.usage(key, period, byok=byok) for key in keys for byok in kinds) + self.cost > limit:
                return True
        return False

    def remaining(self, key: StoredKey) -> Decimal | None:
        """Return the remaining budget of a key in USD; `None` without a limit."""
        if key.limit is None:
            return None
        spent = self.usage(key, key.limit_reset)
        if key.include_byok_in_limit:
            spent += self.usage(key, key.limit_reset, byok=True)
        return max(Decimal(0), key.limit - spent)

    def use(self, secret: str) -> StoredKey:
        """Authenticate a call with a key, given its plaintext.

        Raises:
            ApiError: The key is not valid (yet).
        """
        key = self.by_secret.get(secret)
        if key is None or not self._is_live(key):
            raise ApiError(401, "No auth credentials found")
        if key.refusals_left > 0 or (key.valid_from and key.valid_from > self.now()):
            key.refusals_left = max(0, key.refusals_left - 1)
            raise ApiError(401, "No auth credentials found")
        return key

    def show(self, key: StoredKey) -> dict[str, Any]:
        """Return the JSON object that the management API shows for a key."""
        remaining = self.remaining(key)
        shown: dict[str, Any] = {
            "hash": key.hash,
            "name": key.name,
            "label": key.label,
            "disabled": key.disabled,
            "limit": spelled_number(key.limit),
            "limit_remaining": spelled_number(remaining),
            "limit_reset": key.limit_reset,
            "include_byok_in_limit": key.include_byok_in_limit,
            "created_at": spelled_text(key.created_at),
            "updated_at": spelled_text(key.updated_at),
            "expires_at": spelled_text(key.expires_at),
            "creator_user_id": key.creator_user_id,
            "external_user": None,
            "workspace_id": key.workspace_id,
            **self._usage_fields(key),
        }
        if self.with_last_used_at:
            shown["last_used_at"] = spelled_text(key.last_used_at)
        return shown

    def _usage_fields(self, key: StoredKey) -> dict[str, Any]:
        return {
            f"{prefix}usage{suffix}": float(self.usage(key, period, byok=bool(prefix)))
            for prefix in ("", "byok_")
            for suffix, period in (("", None), ("_daily", "daily"), ("_weekly", "weekly"), ("_monthly", "monthly"))
        }

    def show_itself(
        self, key: StoredKey | None, account: Account, expires_at: datetime | None = None
    ) -> dict[str, Any]:
        """Return a key's own view (`GET /key`); `None` is a management key, which expires at `expires_at`."""
        base: dict[str, Any] = {
            "allowed_data_regions": [],
            "budgets": [],
            "effective_budget": None,
            "free_model_daily_requests": {"limit": 50, "remaining": 50, "used": 0},
            "organization_id": None,
            "is_free_tier": False,
            "is_management_key": key is None,
            "is_provisioning_key": key is None,
            "rate_limit": {"interval": "1h", "note": "This field is deprecated and safe to ignore.", "requests": -1},
        }
        if key is None:
            blank = StoredKey(
                "", "", account, "management key", account.workspaces[0], self.now(), expires_at=expires_at
            )
            return {**base, **self._own_fields(blank), "label": "sk-or-v1-man...in"}
        return {**base, **self._own_fields(key)}

    def _own_fields(self, key: StoredKey) -> dict[str, Any]:
        names = ("label", "limit", "limit_remaining", "limit_reset", "include_byok_in_limit", "creator_user_id")
        shown = self.show(key)
        return {**{name: shown[name] for name in (*names, "expires_at", "workspace_id")}, **self._usage_fields(key)}
