"""Everything that Prefect knows about all rotations, in few calls: ledgers, deployments and runs, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from prefect.client.utilities import get_or_create_client

from blocks.errors import LedgerError
from tasks.ledger import Ledger, ledger_variable, parse_ledger
from tasks.world import LEDGER_TAG, plainly

PAGE = 200
"""How many entries Prefect's API gives at once; it allows no more."""
MAX_PAGES_OF_ENDED_RUNS = 5
"""How far back the last result of a rotation is looked for: the newest 1,000 runs of all rotations."""
MAX_PAGES = 100

Json = dict[str, Any]
Route = Literal["/variables/filter", "/deployments/filter", "/flow_runs/filter", "/deployments/count"]


@dataclass(frozen=True)
class SeenRun:
    """A flow run as the overview shows it.

    Args:
        id: The flow run's id.
        state: The type of its state, such as `COMPLETED`.
        message: The message of its state.
        at: When it ended, started or is to start, UTC.
    """

    id: str
    state: str
    message: str
    at: datetime


@dataclass(frozen=True)
class Facts:
    """What Prefect knows about one rotation.

    Args:
        name: The rotation's name.
        ledger: Its ledger; an empty one where there is none yet, `None` where it cannot be read.
        damage: Why the ledger cannot be read.
        deployment: Its deployment as the API shows it.
        next_run: The next scheduled run, which may be late.
        last_run: The newest run that has started.
        cancelled: The moments of the retirements that somebody cancelled, UTC.
    """

    name: str
    ledger: Ledger | None = field(default_factory=Ledger)
    damage: str = ""
    deployment: Json | None = None
    next_run: SeenRun | None = None
    last_run: SeenRun | None = None
    cancelled: frozenset[datetime] = frozenset()


async def _pages(route: Route, body: Json, most: int = MAX_PAGES) -> AsyncIterator[list[Json]]:
    client, _ = get_or_create_client()
    for number in range(most):
        with plainly("reading about the rotations"):
            answer = await client.request("POST", route, json={**body, "limit": PAGE, "offset": number * PAGE})
        page = answer.json()
        yield page
        if len(page) < PAGE:
            return


async def _all(route: Route, body: Json) -> list[Json]:
    return [entry async for page in _pages(route, body) for entry in page]


def _of_flow(name: str, **runs: Any) -> Json:
    return {"flows": {"name": {"any_": [name]}}, **({"flow_runs": runs} if runs else {})}


async def count_deployments() -> int:
    """Count the deployments of rotations.

    Returns:
        How many there are.
    """
    client, _ = get_or_create_client()
    with plainly("counting the rotations"):
        return int((await client.request("POST", "/deployments/count", json=_rotations())).json())


def _rotations() -> Json:
    return {**_of_flow("rotate"), "deployments": {"tags": {"all_": [LEDGER_TAG]}}}


async def read_deployments() -> list[Json]:
    """Read the deployments of all rotations: those of the flow `rotate` with the tag `key-rotation`.

    Returns:
        The deployments as the API shows them, by name.

    Raises:
        ServiceError: Prefect's API failed.
    """
    return await _all("/deployments/filter", {**_rotations(), "sort": "NAME_ASC"})


def rotation_name(parameters: Any, otherwise: str) -> str:
    """Say which rotation parameters are for.

    Args:
        parameters: The parameters of a deployment or a run.
        otherwise: What to say where they do not tell.

    Returns:
        The rotation's name.
    """
    rotation = parameters.get("rotation") if isinstance(parameters, Mapping) else None
    name = rotation.get("name") if isinstance(rotation, Mapping) else rotation
    return name if isinstance(name, str) and name else otherwise


async def read_facts() -> list[Facts]:
    """Read what Prefect knows about all rotations.

    Returns:
        The facts, by name.

    Raises:
        ServiceError: Prefect's API failed.
    """
    deployments, ledgers, coming, ended, cancelled = await asyncio.gather(
        read_deployments(), _ledgers(), _coming(), _newest(), _cancelled_retirements()
    )
    by_name = {rotation_name(entry["parameters"], entry["name"]): entry for entry in deployments}
    names = sorted({*by_name, *ledgers})
    return [
        _facts(
            name,
            ledgers.get(name),
            by_name.get(name),
            coming.get(name),
            ended.get(name),
            frozenset(cancelled.get(name, ())),
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
) -> Facts:
    try:
        ledger, damage = (Ledger() if value is None else parse_ledger(name, value)), ""
    except LedgerError as error:
        ledger, damage = None, str(error)
    return Facts(name, ledger, damage, deployment, next_run, last_run, cancelled)


async def _ledgers() -> Json:
    prefix = ledger_variable("")
    body = {"variables": {"tags": {"all_": [LEDGER_TAG]}}, "sort": "NAME_ASC"}
    found = await _all("/variables/filter", body)
    return {each["name"].removeprefix(prefix): each["value"] for each in found if each["name"].startswith(prefix)}


def _seen(run: Json) -> SeenRun:
    state = run.get("state") or {}
    at = run.get("end_time") or run.get("start_time") or run.get("next_scheduled_start_time")
    return SeenRun(
        run["id"], run["state_type"], state.get("message") or "", moment_of(at or run["expected_start_time"])
    )


def moment_of(text: str) -> datetime:
    """Read a moment as Prefect's API spells it.

    Args:
        text: An ISO 8601 moment with its offset.

    Returns:
        The moment, UTC.
    """
    return datetime.fromisoformat(text).astimezone(UTC)


async def _coming() -> dict[str, SeenRun]:
    body = {
        **_of_flow("rotate", state={"type": {"any_": ["SCHEDULED"]}}),
        "sort": "NEXT_SCHEDULED_START_TIME_ASC",
    }
    found: dict[str, SeenRun] = {}
    for run in await _all("/flow_runs/filter", body):
        found.setdefault(rotation_name(run["parameters"], ""), _seen(run))
    return found


async def _newest() -> dict[str, SeenRun]:
    body = {
        **_of_flow("rotate", state={"type": {"not_any_": ["SCHEDULED", "PENDING"]}}, start_time={"is_null_": False}),
        "sort": "START_TIME_DESC",
    }
    found: dict[str, SeenRun] = {}
    async for page in _pages("/flow_runs/filter", body, MAX_PAGES_OF_ENDED_RUNS):
        for run in page:
            found.setdefault(rotation_name(run["parameters"], ""), _seen(run))
    return found


async def _cancelled_retirements() -> dict[str, list[datetime]]:
    body = {**_of_flow("retire", state={"type": {"any_": ["CANCELLED"]}}), "sort": "EXPECTED_START_TIME_DESC"}
    found: dict[str, list[datetime]] = {}
    async for page in _pages("/flow_runs/filter", body, 1):
        for run in page:
            found.setdefault(rotation_name(run["parameters"], ""), []).append(moment_of(run["expected_start_time"]))
    return found
