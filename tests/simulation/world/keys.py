"""A key at OpenRouter, with its spending."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from blocks.openrouter.keys import ApiKey, KeyRequest


@dataclass
class ModelKey:
    """A key at OpenRouter."""

    hash: str
    secret: str
    request: KeyRequest
    account: str
    workspace: str
    created_at: datetime
    valid_from: datetime
    disabled: bool = False
    guardrail: str | None = None
    uses: list[tuple[datetime, Decimal]] = field(default_factory=list)
    tells_last_use: bool = True

    def settings(self) -> tuple[KeyRequest, bool, str | None]:
        """Return everything that a call could have changed."""
        return self.request, self.disabled, self.guardrail

    def expired(self, now: datetime) -> bool:
        """Return whether the key has expired."""
        return self.request.expires_at is not None and self.request.expires_at <= now

    def works(self, now: datetime) -> bool:
        """Return whether a consumer can use the key."""
        return not self.disabled and not self.expired(now) and self.valid_from <= now

    def may_be_listed(self, now: datetime) -> bool:
        """Return whether lists accept the key; they learn of a new key later than it works."""
        known_since = self.valid_from + (self.valid_from - self.created_at)
        return not self.disabled and not self.expired(now) and known_since <= now

    def usage(self, reset: str | None, now: datetime) -> Decimal:
        """Return what the key has spent since its limit was last reset."""
        return sum((amount for at, amount in self.uses if at >= period_start(reset, now)), Decimal(0))

    def seen_uses(self, first: int) -> list[tuple[datetime, Decimal]]:
        """Return the visible ones of the first uses: without a date of the last use, a free use cannot be seen."""
        return [(at, amount) for at, amount in self.uses[:first] if self.tells_last_use or amount]

    def may_spend(self, now: datetime) -> Decimal | None:
        """Return what the key may still spend; `None` for an unlimited amount."""
        limit = self.request.limit
        return None if limit is None else max(Decimal(0), limit - self.usage(self.request.limit_reset, now))

    def shown(self, now: datetime) -> ApiKey:
        """Return the key as the management API shows it."""
        return ApiKey(
            hash=self.hash,
            name=self.request.name,
            label=f"sk-or-v1-{self.secret[-9:-6]}...{self.secret[-4:]}",
            disabled=self.disabled,
            limit=self.request.limit,
            limit_reset=self.request.limit_reset,
            include_byok_in_limit=self.request.include_byok_in_limit,
            usage=self.usage(None, now),
            usage_daily=self.usage("daily", now),
            usage_weekly=self.usage("weekly", now),
            usage_monthly=self.usage("monthly", now),
            created_at=self.created_at,
            creator_user_id=self.request.creator_user_id,
            expires_at=self.request.expires_at,
            last_used_at=max((at for at, _ in self.uses), default=None) if self.tells_last_use else None,
            workspace_id=self.workspace,
        )


def period_start(reset: str | None, now: datetime) -> datetime:
    """Return when a limit was last reset."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        None: datetime.min.replace(tzinfo=UTC),
        "daily": midnight,
        "weekly": midnight - timedelta(days=midnight.weekday()),
        "monthly": midnight.replace(day=1),
    }[reset]
