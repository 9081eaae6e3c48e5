"""How long a management key has been in use, and when to exchange it. No API creates or rotates one: a person must."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from tasks.model.times import Moment, show_time

AHEAD = timedelta(days=14)
"""How long before the due time to warn; a person needs time to exchange the key."""
PAGE = "https://openrouter.ai/settings/management-keys"
"""The page on which a person creates a management key."""


class InUse(BaseModel):
    """Since when a connection has used its management key, which is stored as a fingerprint only."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    connection: str
    fingerprint: str
    since: Moment
    remind_after: timedelta
    expires_at: Moment | None = None

    def continued(self, before: InUse | None) -> InUse:
        """Return the entry to store: the same key keeps its start, another one starts now."""
        if before is None or before.fingerprint != self.fingerprint:
            return self
        return self.model_copy(update={"since": min(before.since, self.since)})

    def warning(self, now: datetime) -> str:
        """Return what a person must do, in sentences; empty if nothing.

        Args:
            now: The current time, UTC.
        """
        reasons = []
        if self.expires_at is not None and self.expires_at - now <= AHEAD:
            reasons.append(f"expires at {show_time(self.expires_at)}")
        if now - self.since >= self.remind_after - AHEAD:
            days = (now - self.since).days
            reasons.append(f"has been in use for {days} days, of at most {self.remind_after.days}")
        if not reasons:
            return ""
        return (
            f"The management key of the connection {self.connection} {' and '.join(reasons)}. Exchange it: make a "
            f"new one in the same account at {PAGE}, put it into the block openrouter-credentials/{self.connection}, "
            "run check-connections, and then delete the former management key at OpenRouter."
        )
