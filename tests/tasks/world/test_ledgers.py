"""A run's errors when Prefect's own API fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from starlette.responses import Response

from blocks.errors import OtherRunError, ServiceError
from sandbox.server import running
from tasks.model.ledger import Ledger
from tasks.world import gate, ledgers
from tasks.world.ledgers import term_variable
from tasks.world.open_ledger import LedgerTerm, OpenLedger, prune
from tests.memory import Memory


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit every request to two attempts."""
    monkeypatch.setattr(gate, "ATTEMPTS", 2)


REQUEST = httpx.Request("PATCH", "http://127.0.0.1/api/variables", content=b"what was sent")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("what was sent"),
        httpx.ReadTimeout("what was sent"),
        PrefectHTTPStatusError("what was sent", request=REQUEST, response=httpx.Response(503, request=REQUEST)),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_prefects_api_is_one_plain_sentence(error: Exception) -> None:
    """The sentence says what failed, quotes nothing, and treats the outcome as unknown."""
    client = mock.AsyncMock()
    client.create_variable.side_effect = error

    with (
        mock.patch.object(gate, "get_or_create_client", return_value=(client, False)),
        pytest.raises(ServiceError, match="Prefect's API failed while writing the ledger") as failed,
    ):
        await ledgers.VariableStore("checkout").create(LedgerTerm(1, {}))

    assert "what was sent" not in str(failed.value)
    assert failed.value.outcome_unknown


@asynccontextmanager
async def ledger_behind(answer: Response) -> AsyncIterator[ledgers.VariableStore]:
    """Yield a ledger store on a server that gives the same answer to every request."""
    with running(answer) as url, temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        async with PrefectClient(f"{url}/api") as client:
            with (
                mock.patch.object(gate, "get_or_create_client", return_value=(client, False)),
                mock.patch.object(ledgers, "get_or_create_client", return_value=(client, False)),
            ):
                yield ledgers.VariableStore("checkout")


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500, 502, 503])
async def test_every_status_of_prefects_api_is_one_plain_sentence(status: int) -> None:
    """Whatever answers a write of the ledger, the run reports it in one sentence and quotes nothing."""
    answer = Response("what was sent", status, {"Retry-After": "1"})
    async with ledger_behind(answer) as ledger:
        with pytest.raises(ServiceError, match="failed while writing the ledger") as failed:
            await ledger.create(LedgerTerm(1, {}))

    assert "what was sent" not in str(failed.value)


async def test_an_answer_of_prefects_api_that_is_no_json_is_one_plain_sentence() -> None:
    """A proxy's error page instead of the ledger is reported in one sentence, and not quoted."""
    answer = Response("<html>what was sent</html>", media_type="text/html")
    async with ledger_behind(answer) as ledger:
        with pytest.raises(ServiceError, match="failed while reading the ledger") as failed:
            await ledger.newest()

    assert "what was sent" not in str(failed.value)


async def test_a_ledger_that_appears_in_between_costs_the_run_its_place() -> None:
    """A run must end if another one has just created the ledger."""
    client = mock.AsyncMock()
    client.create_variable.side_effect = ObjectAlreadyExists(Exception())

    with (
        mock.patch.object(gate, "get_or_create_client", return_value=(client, False)),
        pytest.raises(OtherRunError),
    ):
        await ledgers.VariableStore("checkout").create(LedgerTerm(1, {}))


async def test_a_write_that_was_given_up_and_took_effect_costs_no_place() -> None:
    """The term is this attempt's own, so it continues: no other run has taken over."""
    stored: dict[str, Variable] = {}

    async def create(wanted: VariableCreate) -> None:
        if wanted.name in stored:
            raise ObjectAlreadyExists(Exception())
        stored[wanted.name] = Variable(name=wanted.name, value=wanted.value)
        if len(stored) == 1:
            raise httpx.ReadTimeout("it took too long")

    async def read(name: str) -> Variable:
        if len(stored) == 1 and not given_up:
            raise httpx.ReadTimeout("it took too long")
        return stored[name]

    given_up: list[str] = []
    client = mock.AsyncMock()
    client.create_variable.side_effect, client.read_variable_by_name.side_effect = create, read
    store = ledgers.VariableStore("checkout")
    ledger = OpenLedger("checkout", store, uuid4())
    with mock.patch.object(gate, "get_or_create_client", return_value=(client, False)):
        with pytest.raises(ServiceError):
            await ledger.record(Ledger())
        given_up.append("the first write")

        await ledger.record(Ledger(installation="abcdefg"))

    assert [name[-1] for name in stored] == ["1", "2"]
    second: Any = stored[term_variable("checkout", 2)].value
    assert second["installation"] == "abcdefg"


@pytest.mark.parametrize("removed", [False, True])
async def test_pruning_keeps_the_newest_term_that_was_listed_twice(removed: bool) -> None:
    """A variable created between two requests moves an entry to the next page, so that it is listed twice."""
    store = Memory()
    value = (Ledger(removed=removed)).to_json()
    store.terms = {1: value, 2: value, 3: value}
    newest = (await store.newest())[0]

    await prune(store, [newest, *await store.newest()])

    assert sorted(store.terms) == ([3] if removed else [2, 3])
