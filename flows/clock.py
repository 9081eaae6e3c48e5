"""The time by the clock of Prefect's server, which sets the times of all states and judges what is due."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx
from prefect.client.orchestration import PrefectClient

COARSE = timedelta(seconds=3)
"""How old the time in a `Date` header may be: it has whole seconds, and uvicorn renews it once a second."""


class ServerClock:
    """This host's clock, corrected by the `Date` headers of Prefect's API.

    A header tells the earliest time that it can be. So the correction stays while it agrees with the headers, and as
    more of them come, it becomes more exact than any of them.
    """

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        """Return the time by the server's clock; by this host's, if no header has told it."""
        return datetime.now(UTC) + self._ahead

    def follow(self, client: PrefectClient) -> None:
        """Note the time of each answer to a client."""
        hooks = client._client.event_hooks["response"]  # noqa: SLF001 - Prefect's client has no public accessor
        if self._answered not in hooks:
            hooks.append(self._answered)

    async def _answered(self, response: httpx.Response) -> None:
        self.note(response)

    def note(self, response: httpx.Response) -> datetime:
        """Note the time of an answer, and return it by the server's clock."""
        # A proxy may remove the header, or write one without a zone.
        with suppress(TypeError, ValueError, OverflowError):
            least = parsedate_to_datetime(response.headers.get("Date", "")) - datetime.now(UTC)
            if not least <= self._ahead <= least + COARSE:
                self._ahead = least
        return self.now()
