"""Many rotations that are due at once, and their outcome."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect import get_client
from prefect.blocks.system import Secret
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Scheduled

import blocks
from blocks.vault.auth import TokenAuth
from flows.deployments import save_deployment
from sandbox.openrouter_account import OpenRouterSandbox
from sandbox.setup import CONNECTION
from sandbox.vault_tokens import ROOT_TOKEN
from tasks.model.keys import NOT_YET_ROTATED
from tasks.model.rotation import KeySettings, Rotation
from tasks.model.tries import RUN, TRIES_AGAIN

OVERLAP = timedelta(seconds=90)
"""How long a superseded key stays valid; longer than a consumer may fail to read the next one."""
AT_ONCE = 8
"""The concurrency of the preparation."""
PAGE = 200
POLL_SECONDS = 2.0
SETTLED_WITHIN_SECONDS = 1800.0
RETIRED_WITHIN_SECONDS = 600.0
"""How long to wait for the last retirement; the try after a failed one waits at least five minutes."""


@dataclass
class HerdRuns:
    """The outcome of a herd.

    Args:
        due: When its runs were due, UTC.
        run_ids: The scheduled runs.
        runs: All runs of flow `rotate` since then, including tries.
        is_settled: Whether every scheduled run has completed in time, itself or by a later run of its rotation.
    """

    due: datetime
    run_ids: set[UUID]
    runs: list[FlowRun] = field(default_factory=list)
    is_settled: bool = False

    @property
    def own(self) -> list[FlowRun]:
        """The scheduled runs, without their tries."""
        return [run for run in self.runs if run.id in self.run_ids]

    @property
    def finished(self) -> dict[UUID, datetime]:
        """When each scheduled run completed: itself, or by a try, for which a regular run of its rotation may stand."""
        completed = [run for run in self.runs if run.state and run.state.is_completed()]
        ends = {own.id: [run.end_time for run in completed if _finishes(run, own) and run.end_time] for own in self.own}
        return {run_id: min(found) for run_id, found in ends.items() if found}

    @property
    def tries(self) -> Counter[UUID]:
        """The number of tries of each run."""
        return Counter(UUID(str(run.labels[RUN])) for run in self.runs if RUN in run.labels)

    @property
    def seconds(self) -> float:
        """The duration until the last rotation completed."""
        return (max(self.finished.values(), default=self.due) - self.due).total_seconds()


def _finishes(run: FlowRun, own: FlowRun) -> bool:
    if own.id in (run.id, UUID(str(run.labels.get(RUN, run.id)))):
        return True
    if own.state_name not in (TRIES_AGAIN, "Crashed") or own.end_time is None or run.end_time is None:
        return False
    return run.deployment_id == own.deployment_id and run.end_time >= own.end_time


class Herd:
    """Rotations, each with its own deployment.

    Args:
        number: The number of rotations.
        consumed: How many of them have a consumer; every second one of those keeps its key in Vault.
        vault_url: Vault's base URL.
    """

    def __init__(self, number: int, consumed: int, vault_url: str) -> None:
        self._vault_url = vault_url
        self._deployments: dict[str, UUID] = {}
        slugs = ["vault-secret" if each < consumed and each % 2 else "secret" for each in range(number)]
        self.rotations = [
            Rotation(
                name=f"fleet-{each}",
                connection=CONNECTION,
                key=KeySettings(name="fleet", limit_usd=50, limit_reset="monthly"),
                destinations=[f"{slug}/fleet-{each}"],
                overlap=OVERLAP,
            )
            for each, slug in enumerate(slugs)
        ]
        self.consumed = [rotation.destinations[0] for rotation in self.rotations[:consumed]]

    async def prepare(self) -> None:
        """Create the destinations and deployments."""
        at_once = asyncio.Semaphore(AT_ONCE)

        async def one(rotation: Rotation) -> None:
            async with at_once:
                await self._make_destination(rotation)
                self._deployments[rotation.name] = (await save_deployment(None, rotation, None, active=False)).id

        await asyncio.gather(*map(one, self.rotations))

    async def _make_destination(self, rotation: Rotation) -> None:
        slug, _, name = rotation.destinations[0].partition("/")
        if slug == "secret":
            await Secret(value=NOT_YET_ROTATED).asave(name)
            return
        login = blocks.VaultCredentials(url=self._vault_url, auth=TokenAuth(token=ROOT_TOKEN))
        await blocks.VaultSecret(credentials=login, path=name).asave(name)

    async def start(self, over: float) -> HerdRuns:
        """Schedule a run of each rotation.

        Args:
            over: The period, in seconds, over which they are due; 0 for all at once.
        """
        due = datetime.now(UTC) + timedelta(seconds=5 + 0.1 * len(self.rotations))
        at_once = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, deployment_id: UUID) -> UUID:
            at = due + timedelta(seconds=over * number / len(self.rotations))
            state: Any = Scheduled(scheduled_time=at)
            async with at_once:
                return await _scheduled(deployment_id, state)

        ids = await asyncio.gather(*[one(*each) for each in enumerate(self._deployments.values())])
        await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
        return HerdRuns(due, set(ids))

    async def until_retired(self, account: OpenRouterSandbox) -> None:
        """Wait until each rotation has only one live key, or a timeout has passed."""
        deadline = time.monotonic() + OVERLAP.total_seconds() + RETIRED_WITHIN_SECONDS
        while len(account.live_keys()) > len(self.rotations) and time.monotonic() < deadline:  # noqa: ASYNC110 - the stand-in is a thread
            await asyncio.sleep(1)

    async def settle(self, outcome: HerdRuns) -> None:
        """Wait until every scheduled run has completed, or a timeout has passed."""
        deadline = time.monotonic() + SETTLED_WITHIN_SECONDS
        while time.monotonic() < deadline:
            try:
                outcome.runs = await _runs_since(outcome.due)
            except (httpx.HTTPError, PrefectHTTPStatusError):
                continue  # the servers are down, which is part of the trial
            outcome.is_settled = set(outcome.finished) == outcome.run_ids
            if outcome.is_settled:
                return
            await asyncio.sleep(POLL_SECONDS)


async def _scheduled(deployment_id: UUID, state: Any) -> UUID:
    once = str(uuid4())
    while True:
        try:
            async with get_client() as client:
                run = await client.create_flow_run_from_deployment(deployment_id, state=state, idempotency_key=once)
                return run.id
        except (httpx.HTTPError, PrefectHTTPStatusError):
            await asyncio.sleep(POLL_SECONDS)  # the servers are down, which is part of the trial


async def _runs_since(due: datetime) -> list[FlowRun]:
    runs: list[FlowRun] = []
    since = FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(after_=due))
    of_rotate = FlowFilter(name=FlowFilterName(any_=["rotate"]))
    async with get_client() as client:
        while page := await client.read_flow_runs(
            flow_filter=of_rotate, flow_run_filter=since, limit=PAGE, offset=len(runs)
        ):
            runs += page
            if len(page) < PAGE:
                break
    return runs
