"""What Prefect knows about all rotations (ledgers, deployments, runs), read page by page with few requests."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from blocks.errors import LedgerError
from tasks.model.ledger import Ledger, parse_ledger
from tasks.model.parameters import rotation_name
from tasks.model.tries import TRIES_AGAIN, number_of
from tasks.world.api import Json, api_errors, pages, parse_time
from tasks.world.deployments import all_deployments
from tasks.world.ledgers import all_ledgers

MAX_PAGES_OF_RUNS = 5
"""How many pages are searched for last runs: the newest 1,000 runs of all rotations, and as many failed ones."""
MAX_PAGES_OF_OLDER_RUNS = 2
"""How many pages are searched for the deployments without a run among those."""
MAX_PAGES = 100
DOING = "reading about the rotations"


@dataclass(frozen=True)
class SeenRun:
    """A flow run as the overview shows it.

    Args:
        id: The flow run's id.
        state: The type of its state, such as `COMPLETED`; see `seen_state`.
        message: The message of its state.
        at: When it ended or started, or is to start, UTC.
        is_try: Whether it is a try, or a regular run in the place of one; for the next run, whether any coming run is.
    """

    id: str
    state: str
    message: str
    at: datetime
    is_try: bool = False


@dataclass(frozen=True)
class Facts:
    """What Prefect knows about one rotation.

    Args:
        name: The rotation's name.
        ledger: Its ledger; an empty one if there is none yet, `None` if it cannot be read.
        damage: Why the ledger cannot be read.
        deployment: Its deployment, as the API returns it.
        next_run: The next scheduled run, which may be late.
        last_run: The newest run that has started; `None` if none was found.
        cancelled: The times of its cancelled retirements, UTC.
        twins: Other deployments of the same rotation, by name.
    """

    name: str
    ledger: Ledger | None = field(default_factory=Ledger)
    damage: str = ""
    deployment: Json | None = None
    next_run: SeenRun | None = None
    last_run: SeenRun | None = None
    cancelled: frozenset[datetime] = frozenset()
    twins: tuple[str, ...] = ()


def _of_flow(name: str, **runs: Any) -> Json:
    return {"flows": {"name": {"any_": [name]}}, **({"flow_runs": runs} if runs else {})}


async def read_deployments() -> list[Json]:
    """Read the deployments of all rotations.

    Raises:
        ServiceError: Prefect's API failed.
    """
    return [deployment async for deployment in all_deployments()]


async def destinations_in_use() -> dict[str, set[str]]:
    """Return the rotations that publish to each destination.

    Raises:
        ServiceError: Prefect's API failed.
    """
    found: dict[str, set[str]] = {}
    async for deployment in all_deployments():
        rotation = deployment["parameters"].get("rotation")
        named = rotation.get("destinations") if isinstance(rotation, Mapping) else None
        for destination in named if isinstance(named, list) else []:
            name = rotation_name(deployment["parameters"], deployment["name"])
            found.setdefault(str(destination), set()).add(name)
    return found


async def read_facts() -> list[Facts]:
    """Read what Prefect knows about all rotations.

    Raises:
        ServiceError: Prefect's API failed.
    """
    # An undocumented answer of Prefect's API is reported in one sentence, too.
    with api_errors(DOING):
        return await _read_facts()


async def _read_facts() -> list[Facts]:
    deployments, ledgers, coming, newest, failed, cancelled = await asyncio.gather(
        read_deployments(), _ledgers(), _coming(), _newest(), _newest_failed(), _cancelled_retirements()
    )
    same: dict[str, list[Json]] = {}
    for entry in deployments:
        same.setdefault(rotation_name(entry["parameters"], entry["name"]), []).append(entry)
    # Of several deployments, the one with the rotation's name is the one that other code reads.
    by_name = {name: min(them, key=lambda entry: entry["name"] != name) for name, them in same.items()}
    older = await _newest_of([entry["id"] for name, entry in by_name.items() if name not in newest])
    ended = _latest([newest, failed, older])
    names = sorted({*by_name, *ledgers})
    return [
        _facts(
            name,
            ledgers.get(name),
            by_name.get(name),
            coming.get(name),
            ended.get(name),
            frozenset(cancelled.get(name, ())),
            tuple(entry["name"] for entry in same.get(name, ()) if entry is not by_name[name]),
        )
        for name in names
    ]


def _facts(
    name: str,
    value: Any,
    deployment: Json | None,
    next_run: SeenRun | None,
    last_run: SeenRun | None,
    cancelled: frozenset[datetime],
    twins: tuple[str, ...],
) -> Facts:
    try:
        ledger, damage = (Ledger() if value is None else parse_ledger(name, value)), ""
    except LedgerError as error:
        ledger, damage = None, str(error)
    return Facts(name, ledger, damage, deployment, next_run, last_run, cancelled, twins)


async def _ledgers() -> Json:
    return {name: value async for name, value in all_ledgers()}


def seen_state(kind: str, name: str | None) -> str:
    """Return the type of a state, or for a failed run that is tried again, that state's name."""
    return TRIES_AGAIN if name == TRIES_AGAIN else kind


def _seen(run: Json) -> SeenRun:
    state = run.get("state") or {}
    # A run that waits for its Retry keeps the start of its first attempt.
    at = run.get("end_time") or run.get("next_scheduled_start_time") or run.get("start_time")
    return SeenRun(
        run["id"],
        seen_state(run["state_type"], state.get("name")),
        state.get("message") or "",
        parse_time(at or run["expected_start_time"]),
        number_of(run.get("labels") or {}) > 0,
    )


async def _first_of_each(body: Json, most: int) -> dict[str, Json]:
    found: dict[str, Json] = {}
    async for page in pages("/flow_runs/filter", body, DOING, most):
        for run in page:
            found.setdefault(rotation_name(run["parameters"], ""), run)
    return found


async def _coming() -> dict[str, SeenRun]:
    scheduled = _of_flow("rotate", state={"type": {"any_": ["SCHEDULED"]}})
    found: dict[str, SeenRun] = {}
    async for page in pages(
        "/flow_runs/filter", {**scheduled, "sort": "NEXT_SCHEDULED_START_TIME_ASC"}, DOING, MAX_PAGES
    ):
        for run in page:
            name, seen = rotation_name(run["parameters"], ""), _seen(run)
            # A regular run may precede the try of a manual run.
            found[name] = replace(first, is_try=first.is_try or seen.is_try) if (first := found.get(name)) else seen
    return found


def _started() -> Json:
    started = {"state": {"type": {"not_any_": ["SCHEDULED", "PENDING"]}}, "start_time": {"is_null_": False}}
    return {**_of_flow("rotate", **started), "sort": "START_TIME_DESC"}


async def _newest() -> dict[str, Json]:
    return await _first_of_each(_started(), MAX_PAGES_OF_RUNS)


async def _newest_failed() -> dict[str, Json]:
    # A query of their own, so that other runs do not push them out; it includes runs that crashed before their start.
    failed = _of_flow("rotate", state={"type": {"any_": ["FAILED", "CRASHED"]}})
    return await _first_of_each({**failed, "sort": "START_TIME_DESC"}, MAX_PAGES_OF_RUNS)


async def _newest_of(deployments: Collection[str]) -> dict[str, Json]:
    if not deployments:
        return {}
    return await _first_of_each(
        {**_started(), "deployments": {"id": {"any_": list(deployments)}}}, MAX_PAGES_OF_OLDER_RUNS
    )


def _latest(found: Collection[Mapping[str, Json]]) -> dict[str, SeenRun]:
    runs = sorted((item for each in found for item in each.items()), key=lambda item: _begun(item[1]))
    return {name: _seen(run) for name, run in runs}


def _begun(run: Json) -> datetime:
    return parse_time(run["start_time"] or run["expected_start_time"])


async def _cancelled_retirements() -> dict[str, list[datetime]]:
    cancelled = _of_flow("retire", state={"type": {"any_": ["CANCELLED"]}})
    found: dict[str, list[datetime]] = {}
    async for page in pages("/flow_runs/filter", {**cancelled, "sort": "EXPECTED_START_TIME_DESC"}, DOING, 1):
        for run in page:
            found.setdefault(rotation_name(run["parameters"], ""), []).append(parse_time(run["expected_start_time"]))
    return found
