"""Keep the loops of a worker going, whatever Prefect's API answers.

Prefect ends a worker after one answer 4xx or one that is no JSON, and after some seconds without any: from then on it
looks for no emergency and no Cancel, and it exits once its longest run has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from blocks.errors import ServiceError
from tasks.world.api import api_errors

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
"""The longest pause after failures in a row; once the API works again, an emergency waits no longer than this."""
TOLD_AGAIN_SECONDS = 60.0
"""After how long a failure that stays the same is logged again."""
GOES_ON = "Runs in hand go on, and the worker asks again."
REFUSED = f"{GOES_ON} If that does not help, check the worker's PREFECT_API_URL and PREFECT_API_AUTH_STRING."


class Outages:
    """The failures of Prefect's API in one loop of a worker: each is logged, and followed by a pause that grows.

    Args:
        logger: The worker's logger.
    """

    def __init__(self, logger: logging.LoggerAdapter[Any] | logging.Logger) -> None:
        self._logger = logger
        self._told: dict[str, float] = {}
        self._has_failed = False
        self._pause = 0.0

    @contextmanager
    def survived(self, doing: str) -> Iterator[None]:
        """Log a failure of Prefect's API instead of raising it.

        Args:
            doing: The purpose of the requests, as it reads after "while".
        """
        try:
            with api_errors(doing):
                yield
        except ServiceError as error:
            self._tell(logging.WARNING if error.retryable else logging.ERROR, str(error), error.retryable)
        except (ObjectNotFound, ObjectAlreadyExists) as error:
            self._tell(logging.ERROR, f"Prefect's API failed while {doing} ({type(error).__name__}).", False)

    def _tell(self, level: int, what: str, passes: bool) -> None:
        self._has_failed = True
        now = time.monotonic()
        if what not in self._told or now - self._told[what] >= TOLD_AGAIN_SECONDS:
            self._told[what] = now
            self._logger.log(level, "%s %s", what, GOES_ON if passes else REFUSED)

    async def pause(self) -> None:
        """Wait if anything has failed since the last call: twice as long each time, up to `LONGEST_PAUSE_SECONDS`."""
        self._pause = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause), LONGEST_PAUSE_SECONDS) * self._has_failed
        if self._has_failed:
            self._has_failed = False
            await anyio.sleep(self._pause)
        else:
            self._told.clear()
