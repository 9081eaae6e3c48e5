"""Whatever Prefect's API returns, a call ends with a documented result, or one sentence without secrets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import prefect as prefect_package
import pytest
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import RRuleSchedule
from prefect.context import AsyncClientContext, FlowRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from blocks.destination import Content
from blocks.errors import KeyRotationError
from flows import slot
from flows.deployments import make_first_key, read_deployment, save_deployment
from flows.show.overview import show
from flows.slot import Slot
from sandbox.server import running
from tasks.model.rotation import KeySettings, Rotation
from tasks.world import gate
from tasks.world.destinations import PrefectSecret
from tasks.world.inventory import destinations_in_use, read_facts
from tasks.world.ledgers import VariableStore, prune_ledgers
from tasks.world.open_ledger import LedgerTerm
from tasks.world.orchestrator import PrefectWorld
from tasks.world.slots import slot_warnings
from tests.hostile.judging import LONGEST_SECONDS, is_plain, leaks, shown
from tests.hostile.liar import ANSWERS, KEY, Liar

RUN = UUID(int=7)
ROTATION = Rotation(
    name="checkout",
    connection="openrouter",
    key=KeySettings(name="checkout service"),
    destinations=["secret/checkout"],
)
SCHEDULE = RRuleSchedule(rrule="DTSTART:20261201T033000\nRRULE:FREQ=DAILY;INTERVAL=30", timezone="UTC")
NOW = datetime(2026, 12, 1, tzinfo=UTC)


async def _walked(walk: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in walk]


def _secret() -> PrefectSecret:
    secret = PrefectSecret("secret/checkout", Secret(value="old"))
    secret._just_loaded, secret._document_id = None, RUN
    return secret


async def _in_a_run(call: Callable[[PrefectWorld], Awaitable[Any]]) -> Any:
    """Make a call as a run of a deployment would."""
    run = FlowRun(id=RUN, flow_id=RUN, deployment_id=RUN)
    fields: dict[str, Any] = {"flow_run": run}
    with FlowRunContext.model_construct(**fields):
        return await call(PrefectWorld())


def _deployment() -> DeploymentResponse:
    return DeploymentResponse(id=RUN, flow_id=RUN, name="checkout", labels={})


async def _take_slot() -> None:
    """Take and release a slot, as an emergency would; its log has no run, and its clock is advanced by its waits."""
    seconds = 0.0

    async def wait(how_long: float) -> None:
        nonlocal seconds
        seconds += how_long

    run = FlowRun(id=RUN, flow_id=RUN)
    with mock.patch.object(slot, "get_run_logger", return_value=logging.getLogger("tests.slot")):
        async with AsyncExitStack() as stack:
            await Slot("checkout", run, emergency=True, sleep=wait, now=lambda: seconds).take(stack)


CALLS: dict[str, Callable[[], Awaitable[Any]]] = {
    "the ledger is read": lambda: VariableStore("checkout").newest(),
    "the ledger is written": lambda: VariableStore("checkout").create(LedgerTerm(1, {})),
    "a ledger of format 1 is closed": lambda: VariableStore("checkout").close_format_1({}),
    "a term is deleted": lambda: VariableStore("checkout").delete([1]),
    "ledgers": lambda: _walked(PrefectWorld().ledgers()),
    "load_blocks": lambda: PrefectWorld().load_blocks(["secret/checkout"], "openrouter"),
    "connection": lambda: PrefectWorld().connection("openrouter"),
    "destination": lambda: PrefectWorld().destination("secret/checkout"),
    "installation": lambda: PrefectWorld().installation(),
    "known_runs": lambda: PrefectWorld().known_runs({RUN}),
    "schedule_retirement": lambda: PrefectWorld().schedule_retirement("checkout", NOW, even_if_cancelled=False),
    "retirements_to_come": lambda: PrefectWorld().retirements_to_come("checkout"),
    "cancel_retirements": lambda: PrefectWorld().cancel_retirements("checkout", []),
    "deployed_rotation": lambda: PrefectWorld().deployed_rotation("checkout"),
    "destinations_of": lambda: PrefectWorld().destinations_of("checkout"),
    "delete_deployment": lambda: PrefectWorld().delete_deployment("checkout"),
    "deployments": lambda: _walked(PrefectWorld().deployments()),
    "check_deployment": lambda: _in_a_run(PrefectWorld.check_deployment),
    "longest_interval": lambda: _in_a_run(PrefectWorld.longest_interval),
    "a deployment is read": lambda: read_deployment("checkout"),
    "a deployment is made": lambda: save_deployment(None, ROTATION, SCHEDULE, active=True),
    "a deployment is changed": lambda: save_deployment(_deployment(), ROTATION, SCHEDULE, active=True),
    "the first key is made": lambda: make_first_key(_deployment()),
    "all ledgers are pruned": prune_ledgers,
    "destinations are listed": destinations_in_use,
    "all facts are read": read_facts,
    "slots are looked at": slot_warnings,
    "a slot is taken": _take_slot,
    "the overview is shown": lambda: show([], NOW),
    "a secret is read": lambda: _secret().read_content(),
    "a secret is written": lambda: _secret().write_content(SecretStr(KEY), Content(None), {}),
}
"""Every call to Prefect's API that the project's own code makes."""
WITHOUT_ANSWER = {"now", "sleep", "separate", "emit"}
"""Methods of `PrefectWorld` that send no request, or do not wait for the response."""


async def _version(_request: Request) -> JSONResponse:
    return JSONResponse(prefect_package.__version__)


@pytest.fixture(scope="module")
def prefect() -> Iterator[Liar]:
    """A server in place of Prefect's API; only its version is correct."""
    liar = Liar(Starlette(routes=[Route("/api/admin/version", _version)]), "Prefect")
    with running(liar) as url, temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield liar


def _is_documented(result: Any) -> bool:
    """Return whether a call ended with a plain error of this project, or as if nothing existed."""
    return (
        is_plain(result)
        if isinstance(result, KeyRotationError)
        else result in (None, False, [], set(), {}, timedelta(0))
    )


def test_no_call_of_the_world_is_left_out() -> None:
    """`CALLS` must contain every method of `PrefectWorld` that waits for a response of the API."""
    asked = {name for name in vars(PrefectWorld) if not name.startswith("_")} - WITHOUT_ANSWER

    assert asked <= set(CALLS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
async def test_a_lie_of_prefects_api_ends_with_one_sentence_and_no_secret(
    prefect: Liar, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the response, a call raises a plain error or acts as if nothing existed, and reveals no secret."""
    # Prefect's client waits even if it does not retry.
    for wait in ("clamped_poisson_interval", "bounded_poisson_interval"):
        monkeypatch.setattr(f"prefect.client.base.{wait}", lambda *_: 0.0)
    monkeypatch.setattr(gate, "ATTEMPTS", 2)
    monkeypatch.setattr(gate, "LONGEST_WAIT_SECONDS", 0.1)
    wrong, told = {}, {}

    async with AsyncClientContext.get_or_create():
        for answer, lie in ANSWERS.items():
            prefect.lies, prefect.told = (".*", "/api/(?!admin/version)", lie), 0
            try:
                async with asyncio.timeout(LONGEST_SECONDS):
                    result: Any = await CALLS[name]()
            except Exception as error:  # noqa: BLE001 - the test looks for errors of any other class
                result = error
            told[answer] = prefect.told
            if not _is_documented(result) or leaks(shown(result)):
                wrong[answer] = repr(result)[:300]

    assert wrong == {}
    assert min(told.values()) > 0
