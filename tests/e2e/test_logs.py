"""The log of a real run on Prefect's server."""

from __future__ import annotations

import pytest
from prefect import State, flow, get_client, get_run_logger
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.logging.handlers import APILogHandler

from flows.runs import conclude
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the mark applies to this module
from tests.hostile.liar import KEY

LABEL = "sk-or-v1-0e6...1c96"


@flow(persist_result=False)
async def careless() -> State[None]:
    """Log what must never be logged, inside the wrapper of every flow of this project."""
    async with conclude() as conclusion:
        logger = get_run_logger()
        logger.info("made %s, which people know as %s", KEY, LABEL)
        try:
            int(KEY)
        except ValueError:
            logger.exception("it failed")
        conclusion.succeeded("done")
    return conclusion.state


async def test_a_careless_log_call_does_not_bring_a_key_to_the_server(
    services: Services, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the server nor the console gets the key; the label and every record are kept."""
    state = await careless(return_state=True)
    await APILogHandler.aflush()

    async with get_client() as client:
        mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
        messages = [entry.message for entry in await client.read_logs(mine)]

    assert f"made sk-or-v1-[redacted], which people know as {LABEL}" in messages
    assert any("it failed" in message and "Traceback" in message for message in messages)
    assert KEY not in "".join([*messages, *capfd.readouterr()])
