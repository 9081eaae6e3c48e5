"""The attempts that a worker executes, and the precedence of emergencies over them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any
from uuid import UUID

from prefect import State
from prefect._flow_run_suspension import FlowRunSuspensionRequest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import AsyncFlowRunEngine

from blocks.threads import OwnThreads
from tasks.model.parameters import is_emergency, rotation_name
from tasks.world.gate import one_watched_client

CANCEL_AGAIN_SECONDS = 30.0
"""How long a cancelled run may take to end before it is cancelled again."""
PATIENCE_SECONDS = 5.0
"""How long a run may be paused for emergencies, in total; well below its timeouts and its slot's lease."""


class Attempt(AsyncFlowRunEngine[..., Any]):
    """One attempt at a flow run, which another thread can cancel."""

    _loop: asyncio.AbstractEventLoop | None = None
    _task: asyncio.Task[Any] | None = None
    _stopped_at: float | None = None
    _is_over: bool = False
    _patience: float = PATIENCE_SECONDS

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled the run."""
        return self._stopped_at is not None and not self._is_over

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[FlowRunSuspensionRequest]:
        """Leave the detection of a suspension to the worker.

        Before a run becomes Running, Prefect 3.8.8 would start a thread, a client and an event subscription for it, and
        wait without a timeout until they are ready.
        """
        yield self._get_flow_run_suspension_request()

    def suspend(self, state: State[Any]) -> None:
        """End the attempt at its next step; the server resumes the run as another attempt."""
        self._get_flow_run_suspension_request().mark_requested(state)

    def cancel(self) -> None:
        """Cancel the run; can be called from any thread. A run that does not end in time is cancelled again."""
        at = time.monotonic()
        if self._stopped_at is not None and at - self._stopped_at < CANCEL_AGAIN_SECONDS:
            return
        self._stopped_at = at
        if self._task is not None:
            self._call_in_loop(self._task.cancel)

    def end(self) -> None:
        """Stop without reporting a state: the server has a final one, and a try may have done the work meanwhile."""
        self._is_over = self.short_circuit = True
        self.cancel()

    def pause(self, until: Event) -> None:
        """Block the run's event loop until an event is set, within its remaining patience; callable from any thread.

        To the run this looks like a paused process, which the ledger tolerates.
        """
        self._call_in_loop(self._wait, until)

    def _call_in_loop(self, call: Callable[..., Any], *args: Any) -> None:
        # The run may end in its own thread at any moment, and its loop with it.
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *args)

    def _wait(self, until: Event) -> None:
        begun = time.monotonic()
        until.wait(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - begun))

    async def handle_crash(self, exc: BaseException) -> None:
        """Report an interruption as Cancelled if the run was cancelled, else as Crashed, unless the run is over."""
        if not self._is_over:
            await (self.handle_cancellation(exc) if self.is_cancelled else super().handle_crash(exc))

    async def make(self) -> int:
        """Run the flow to its final state.

        Returns:
            0 if the final state was reported, 1 if not.
        """
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._loop.set_default_executor(OwnThreads())
        try:
            if self._stopped_at is None:
                # The engine uses this client, too.
                async with one_watched_client(), self.start():
                    while self.is_running():
                        async with self.run_context():
                            await self.call_flow_fn()  # type: ignore[unused-coroutine] # it is the flow's result
        except (Abort, Pause):
            # The server has set the run's next state.
            return 0
        except BaseException:  # noqa: BLE001 - no failure of a run may stop the worker
            return 0 if self._stopped_at is not None or self.state.is_final() else 1
        return 0


class Precedence:
    """Pauses the other runs of this process while an emergency runs.

    Otherwise the server would answer their requests before the emergency's. A pause lasts a few seconds at most, so an
    emergency that itself waits, for example for Vault, does not delay them for long.
    """

    def __init__(self) -> None:
        self._begun: dict[UUID, tuple[float, Event]] = {}

    @property
    def is_taken(self) -> bool:
        """Whether new ordinary runs have to wait."""
        return any(time.monotonic() - begun < PATIENCE_SECONDS for begun, _ in self._begun.values())

    @property
    def in_hand(self) -> int:
        """How many emergencies have begun and not ended."""
        return len(self._begun)

    def begin(self, emergency: FlowRun, others: Iterable[Attempt]) -> None:
        """Pause the ordinary runs of other rotations until an emergency has ended.

        Runs of its own rotation go on, because they may hold the slot that it waits for; runs that name no rotation may
        hold any slot, so they go on too.
        """
        ended = Event()
        self._begun[emergency.id] = time.monotonic(), ended
        own = rotation_name(emergency.parameters, "")
        for each in others:
            parameters = each.parameters or {}
            if not is_emergency(parameters) and rotation_name(parameters, "") not in ("", own):
                each.pause(ended)

    def end(self, emergency: UUID) -> None:
        """Resume the runs paused for an emergency; do nothing for any other run."""
        if found := self._begun.pop(emergency, None):
            found[1].set()
