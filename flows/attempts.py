"""The attempts that a worker has in hand, and the precedence of emergencies among them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any
from uuid import UUID

from prefect import State
from prefect._flow_run_suspension import FlowRunSuspensionRequest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import AsyncFlowRunEngine

from tasks.world.inventory import is_emergency, rotation_name

CANCEL_AGAIN_SECONDS = 30.0
"""How long a cancelled run may take to end before it is cancelled once more."""
PATIENCE_SECONDS = 5.0
"""How long a run stands still for emergencies, in total; far below its deadlines and the lease of its slot."""


class Attempt(AsyncFlowRunEngine[..., Any]):
    """One attempt at a flow run, which another thread can cancel."""

    _loop: asyncio.AbstractEventLoop | None = None
    _task: asyncio.Task[Any] | None = None
    _cancelled_at: float | None = None
    _patience: float = PATIENCE_SECONDS

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled the run."""
        return self._cancelled_at is not None

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[FlowRunSuspensionRequest]:
        """Leave it to the worker to notice that the run is suspended.

        Prefect 3.8.8 starts a thread with a client and a subscription to events for each run, and waits without a
        deadline until that is ready, before the run is Running.
        """
        yield self._get_flow_run_suspension_request()

    def suspend(self, state: State[Any]) -> None:
        """End the attempt at its next step; the server resumes the run as another attempt."""
        self._get_flow_run_suspension_request().mark_requested(state)

    def cancel(self) -> None:
        """Cancel the run, from any thread; one that has not ended in time is cancelled once more."""
        at = time.monotonic()
        if self._cancelled_at is not None and at - self._cancelled_at < CANCEL_AGAIN_SECONDS:
            return
        self._cancelled_at = at
        if self._loop is not None and self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def stand_still(self, until: Event) -> None:
        """Let nothing of the run go on, from any thread, until an event, or for as long as its patience lasts.

        Its thread waits; to the run that is a pause of its process, of which the ledger makes no harm.
        """
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wait, until)

    def _wait(self, until: Event) -> None:
        begun = time.monotonic()
        until.wait(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - begun))

    async def handle_crash(self, exc: BaseException) -> None:
        """Report the end of a cancelled run as Cancelled, and any other interruption as Crashed."""
        await (self.handle_cancellation(exc) if self.is_cancelled else super().handle_crash(exc))

    async def make(self) -> int:
        """Run the flow to its final state.

        Returns:
            0 if the final state was reported, 1 if not.
        """
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            if not self.is_cancelled:
                async with self.start():
                    while self.is_running():
                        async with self.run_context():
                            await self.call_flow_fn()  # type: ignore[unused-coroutine] # it is the flow's result
        except (Abort, Pause):
            # The server has decided what becomes of the run.
            return 0
        except BaseException:  # noqa: BLE001 - a run's end, however it came, is no reason to end the worker
            return 0 if self.is_cancelled or self.state.is_final() else 1
        return 0


class Precedence:
    """Emergencies in hand, for which the other runs of the process stand still.

    Whatever those send would be answered before an emergency's next request. They wait for a few seconds at most, so
    that an emergency which itself waits, for Vault for example, does not hold up the others.
    """

    def __init__(self) -> None:
        self._begun: dict[UUID, tuple[float, Event]] = {}

    @property
    def is_taken(self) -> bool:
        """Whether no ordinary run is to be begun now."""
        return any(time.monotonic() - begun < PATIENCE_SECONDS for begun, _ in self._begun.values())

    def begin(self, emergency: FlowRun, others: Iterable[Attempt]) -> None:
        """Let the runs of other rotations stand still until an emergency has ended.

        Those of its own rotation may have the slot for which it waits, and those of none may have any.
        """
        ended = Event()
        self._begun[emergency.id] = time.monotonic(), ended
        own = rotation_name(emergency.parameters, "")
        for each in others:
            parameters = each.parameters or {}
            if not is_emergency(parameters) and rotation_name(parameters, "") not in ("", own):
                each.stand_still(ended)

    def end(self, emergency: UUID) -> None:
        """Let the others go on; a run that is no emergency is passed over."""
        if found := self._begun.pop(emergency, None):
            found[1].set()
