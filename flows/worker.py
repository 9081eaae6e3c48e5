"""The worker type `key-rotation`, which executes this package's flows in its own interpreter.

A process worker starts an interpreter for each run: seconds of CPU time for half a second of work. Here each run gets a
thread with its own event loop, so a run that blocks its loop does not delay the others. Prefect's engine handles
signals in the main thread only, so SIGTERM reaches the worker, not its runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import anyio
import anyio.abc
from anyio import CapacityLimiter, to_thread
from prefect import Flow
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType, WorkPool
from prefect.client.schemas.objects import Flow as StoredFlow
from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Failed
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import PrivateAttr

import flows
from blocks.errors import ConfigurationError
from blocks.http import seconds_to_wait
from blocks.redaction import redact_logs
from blocks.threads import OwnThreads
from flows.abandoned import Abandoned
from flows.attempts import Attempt, Precedence
from flows.clock import ServerClock
from flows.emergencies import MOST_LISTED, DueEmergencies
from flows.outages import Outages
from tasks.model.parameters import is_emergency
from tasks.world.api import as_not_found
from tasks.world.gate import watch_answers

LIMIT = 20
"""How many ordinary runs a worker executes at once at most, unless `--limit` says otherwise."""
ALWAYS = 4
"""How many of them it executes however busy the server is.

With more, an emergency is found and started late, because the server answers the requests of the ordinary runs first.
So a worker takes more only while it finds runs quickly.
"""
QUICK_LOOKS = 4
"""How many quick looks for runs, all with full hands, it takes for one more; a slow one takes all of them away."""
SLOW_SECONDS = 0.1
"""How long a look for runs may take to be quick."""
RESERVED_FOR_EMERGENCIES = 5
"""How many slots a worker reserves for emergencies, on top of its limit for ordinary runs."""

FLOWS: Mapping[str, Flow[..., Any]] = {
    f"{each.fn.__module__}:{each.fn.__name__}": each for each in vars(flows).values() if isinstance(each, Flow)
}
"""The flows that this worker executes, by entrypoint."""


def flow_at(entrypoint: str | None) -> Flow[..., Any]:
    """Return the flow of this package at an entrypoint, such as `flows.rotate:rotate`.

    Raises:
        ConfigurationError: It is no flow of this package.
    """
    if entrypoint is not None and entrypoint in FLOWS:
        return FLOWS[entrypoint]
    raise ConfigurationError(
        "A worker of the type key-rotation runs the flows of this package only, not "
        f"{entrypoint or 'a run without an entrypoint'}: start another type of worker for it, with a work pool of its "
        "own."
    )


class KeyRotationJobConfiguration(BaseJobConfiguration):
    """The part of a deployment's job that this worker uses: the entrypoint of its flow."""

    _entrypoint: str | None = PrivateAttr(default=None)
    _sets_environment: bool = PrivateAttr(default=False)

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: StoredFlow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Store the flow's entrypoint, and whether the job sets environment variables."""
        variables = {**((deployment and deployment.job_variables) or {}), **(flow_run.job_variables or {})}
        self._sets_environment = bool(self.env) or any(name.partition(".")[0] == "env" for name in variables)
        self._entrypoint = deployment.entrypoint if deployment else None
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)

    @classmethod
    def _base_environment(cls) -> dict[str, str]:
        # Prefect would serialise all settings (20 ms of CPU time) for a process that is never started.
        return {}

    def flow(self) -> Flow[..., Any]:
        """Return the flow to run.

        Raises:
            ConfigurationError: It is no flow of this package, or the job sets environment variables.
        """
        if self._sets_environment:
            raise ConfigurationError(
                "A worker of the type key-rotation has one environment for all its runs: remove env from the job "
                "variables and set it where the worker is started, or use a process worker."
            )
        return flow_at(self._entrypoint)


class KeyRotationWorkerResult(BaseWorkerResult):
    """The result of an attempt: 0 if the server knows its final state."""


class KeyRotationWorker(
    BaseWorker[KeyRotationJobConfiguration, BaseVariables, KeyRotationWorkerResult],
):
    """Executes this package's flows in its own interpreter, each run in its own thread.

    Pools, queues, priorities, Cancel and Retry work as with every Prefect worker. Some slots are reserved for
    emergencies. On SIGTERM the worker takes no new runs, and exits when its runs have ended.

    Args:
        work_pool_name: The work pool.
        limit: How many ordinary runs it executes at once.
        **base: The arguments of every Prefect worker.
    """

    type = "key-rotation"
    job_configuration = KeyRotationJobConfiguration
    _display_name = "Key rotation"
    _description = "Run the flows of the package key-rotation in the worker's own interpreter."

    def __init__(self, work_pool_name: str, *, limit: int | None = None, **base: Any) -> None:
        redact_logs()
        super().__init__(work_pool_name, limit=(LIMIT if limit is None else limit) + RESERVED_FOR_EMERGENCIES, **base)
        self._attempts: dict[UUID, Attempt] = {}
        self._precedence = Precedence()
        self._polls, self._syncs = Outages(self._logger), Outages(self._logger)
        self._clock = ServerClock()
        self._due_emergencies = DueEmergencies(self._clock)
        self._abandoned: Abandoned | None = None
        self._quick_looks = 0

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Return the base job template of a new pool; Prefect requires at least one variable."""
        name = {"type": "string", "title": "Name", "description": "Name of the job; the flow run's by default."}
        return {
            "job_configuration": {"name": "{{ name }}"},
            "variables": {"type": "object", "properties": {"name": name}},
        }

    async def setup(self) -> None:
        """Start the worker."""
        asyncio.get_running_loop().set_default_executor(OwnThreads())
        await super().setup()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take scheduled runs, then stop this worker's runs that were cancelled or suspended, or that are over."""
        taken: list[FlowRun] = []
        with self._polls.survived("looking for runs"):
            taken = await super().get_and_submit_flow_runs()
        with self._polls.survived("looking for runs to stop"):
            await self._stop_what_others_stopped()
        await self._polls.pause()
        return taken

    async def _stop_what_others_stopped(self) -> None:
        if not self._attempts:
            return
        # A paused process goes on with runs that were reported as crashed and finished by their tries.
        kinds = [StateType.CANCELLING, StateType.PAUSED, *TERMINAL_STATES]
        stopped = FlowRunFilter(
            id=FlowRunFilterId(any_=list(self._attempts)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=kinds)),
        )
        for flow_run in await self.client.read_flow_runs(flow_run_filter=stopped):
            attempt, state = self._attempts.get(flow_run.id), flow_run.state
            if attempt and state and state.is_cancelling():
                attempt.cancel()
            elif attempt and state and state.name == "Suspended":
                attempt.suspend(state)
            elif attempt and state and state.is_final():
                attempt.end()

    async def sync_with_backend(self) -> None:
        """Send the worker's heartbeat, and recover abandoned runs."""
        watch_answers(self.client)
        self._clock.follow(self.client)
        # A worker that is refused as it starts ends at once, as every Prefect worker does.
        with self._syncs.survived("sending the worker's heartbeat") if self.is_setup else nullcontext():
            await super().sync_with_backend()
            self._abandoned = self._abandoned or Abandoned(self.client, self._work_pool_name, self._clock)
            await self._abandoned.mark_not_begun(self._own_runs())
            await self._abandoned.mark_crashed(self._own_runs())
            await self._abandoned.try_again()
        await self._syncs.pause()

    def _own_runs(self) -> set[UUID]:
        # A slot is occupied in the name of a run, from before the run is submitted until after its attempt has ended.
        return {UUID(str(run_id)) for run_id in self.limiter.statistics().borrowers}

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        # The base class requests 200 runs, no matter how few this worker can take. Its own runs can be listed, too.
        free = self._free_slots()
        wanted = min(free + len(self._own_runs()), MOST_LISTED)
        due = await self._timed(self._due(wanted)) if free else []
        if free and len(due) < wanted:
            self._due_emergencies.forget()
            return due
        return [*await self._timed(self._emergencies()), *due]

    async def _timed(self, look: Awaitable[list[WorkerFlowRunResponse]]) -> list[WorkerFlowRunResponse]:
        """Look for runs, and adapt the number of ordinary runs to the time that it takes."""
        begun = time.monotonic()
        try:
            return await look
        finally:
            ordinary = self._ordinary_runs()
            if time.monotonic() - begun > SLOW_SECONDS or ordinary == 0:
                self._quick_looks = 0
            elif ordinary >= self._allowed() and not self._precedence.is_taken:
                self._quick_looks += 1

    def _ordinary_runs(self) -> int:
        return int(self.limiter.borrowed_tokens) - self._precedence.in_hand

    def _allowed(self) -> int:
        limit = int(self.limiter.total_tokens) - RESERVED_FOR_EMERGENCIES
        return min(limit, ALWAYS + self._quick_looks // QUICK_LOOKS)

    def _free_slots(self) -> int:
        if self._precedence.is_taken or seconds_to_wait() > 0:
            return 0
        return max(0, min(int(self.limiter.available_tokens), self._allowed() - self._ordinary_runs()))

    async def _due(self, wanted: int) -> list[WorkerFlowRunResponse]:
        # Without the base class's seconds ahead of time: a run that waits for its time would occupy a slot.
        before = self._clock.now()
        body = {"work_queue_names": sorted(self._work_queues), "scheduled_before": str(before), "limit": wanted}
        path = {"name": self._work_pool_name}
        try:
            with as_not_found():
                answer = await self.client.request(
                    "POST", "/work_pools/{name}/get_scheduled_flow_runs", path_params=path, json=body
                )
        except ObjectNotFound:
            # The next heartbeat recreates a deleted pool.
            return []
        return WorkerFlowRunResponse.model_validate_list(answer.json())

    async def _emergencies(self) -> list[WorkerFlowRunResponse]:
        return await self._due_emergencies.find(self.client, self.work_pool, self._work_queues)

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        entries = {entry.flow_run.id: entry for entry in flow_run_response}
        # A run can be retried before its previous attempt has left this worker.
        fresh = [entry for key, entry in entries.items() if key not in self._own_runs()]
        urgent = [each for each in fresh if is_emergency(each.flow_run.parameters)]
        for each in urgent:
            self._precedence.begin(each.flow_run, self._attempts.values())
        taken = await super()._submit_scheduled_flow_runs(urgent)
        for left in {each.flow_run.id for each in urgent} - {run.id for run in taken}:
            self._precedence.end(left)
        ordinary = [each for each in fresh if not is_emergency(each.flow_run.parameters)]
        return taken + await super()._submit_scheduled_flow_runs(ordinary[: self._free_slots()])

    async def _submit_run(self, flow_run: FlowRun) -> None:
        if not self.is_setup:
            return
        # Once taken, a run is executed even if the worker is stopping.
        with anyio.CancelScope(shield=True):
            try:
                await super()._submit_run(flow_run)
            except Exception:
                self._logger.exception("Flow run %s could not be taken; it will be taken again.", flow_run.id)
            finally:
                self._submitting_flow_run_ids.discard(flow_run.id)
                if flow_run.id not in self._attempts:
                    self._precedence.end(flow_run.id)
                    self._release_limit_slot(flow_run.id)

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Write no labels: the run's log names the worker, and a failed write would mark the run as Crashed."""

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Leave the run Pending: nothing is submitted elsewhere, and it becomes Running a moment later."""

    async def _submit_run_and_capture_errors(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[Any] | None = None
    ) -> BaseWorkerResult | Exception:
        with anyio.CancelScope(shield=True):
            end = await super()._submit_run_and_capture_errors(flow_run, task_status)
        return end  # noqa: RET504 - after a cancel scope, mypy requires a separate return

    async def run(
        self,
        flow_run: FlowRun,
        configuration: KeyRotationJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> KeyRotationWorkerResult:
        """Execute a flow run in its own thread, and wait for its end."""
        try:
            flow = configuration.flow()
        except ConfigurationError as error:
            (task_status or anyio.TASK_STATUS_IGNORED).started(str(flow_run.id))
            await propose_state(self.client, Failed(message=str(error)), flow_run_id=flow_run.id)
            return KeyRotationWorkerResult(status_code=0, identifier=str(flow_run.id))
        attempt = self._attempts[flow_run.id] = Attempt(flow=flow, flow_run=flow_run, parameters=flow_run.parameters)
        (task_status or anyio.TASK_STATUS_IGNORED).started(str(flow_run.id))
        try:
            code = await to_thread.run_sync(asyncio.run, attempt.make(), limiter=CapacityLimiter(1))
            if not attempt.state.is_final():
                code = await self._set_missing_state(attempt, flow_run.id) or code
        finally:
            del self._attempts[flow_run.id]
            self._precedence.end(flow_run.id)
        return KeyRotationWorkerResult(status_code=code, identifier=str(flow_run.id))

    async def _set_missing_state(self, attempt: Attempt, run_id: UUID) -> int:
        # The server rejected the attempt's state, and nothing else would end the run.
        state = (await self.client.read_flow_run(run_id)).state
        if attempt.is_cancelled or (state and state.is_cancelling()):
            await self.client.set_flow_run_state(run_id, Cancelled(), force=True)
            return 0
        return int(state is not None and state.is_pending())

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        with self._polls.survived("cancelling a run that has not started"):
            await super()._cancel_run(flow_run_id)

    async def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: KeyRotationJobConfiguration,  # noqa: ARG002 - the base class passes it
        grace_seconds: int = 30,  # noqa: ARG002 - the base class passes it
    ) -> None:
        """Cancel a run that was taken but has not started."""
        if attempt := self._attempts.get(UUID(infrastructure_pid)):
            attempt.cancel()
