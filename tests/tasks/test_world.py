"""What a run hears when Prefect's own API fails."""

from __future__ import annotations

from unittest import mock

import httpx
import pytest
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError

from blocks.errors import PlaceLostError, ServiceError
from tasks import world

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
    """The sentence says what failed, quotes nothing, and counts the outcome as unknown."""
    client = mock.AsyncMock()
    client.update_variable.side_effect = error

    with (
        mock.patch.object(world, "get_or_create_client", return_value=(client, False)),
        pytest.raises(ServiceError, match="Prefect's API failed while writing the ledger") as failed,
    ):
        await world.VariableStore("checkout").update({})

    assert "what was sent" not in str(failed.value)
    assert failed.value.outcome_unknown


async def test_a_ledger_that_appears_in_between_costs_the_run_its_place() -> None:
    """Making a ledger that another run has just made ends this run."""
    client = mock.AsyncMock()
    client.create_variable.side_effect = ObjectAlreadyExists(Exception())

    with mock.patch.object(world, "get_or_create_client", return_value=(client, False)), pytest.raises(PlaceLostError):
        await world.VariableStore("checkout").create({})
