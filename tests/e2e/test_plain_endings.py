"""A run's final state says what it did, whatever Prefect's API or a library does meanwhile."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import httpx
import pytest
from prefect import State, get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.filesystems import LocalFileSystem

import tasks.publish
from flows import rotate
from tasks.world.run import VerifiedKey
from tests.by_hand import delete_ledger
from tests.e2e.conftest import Services, pytestmark  # noqa: F401 - the mark applies to this module
from tests.e2e.driver import attempt, begin_rotation, retry


def broken(where: str) -> Any:
    """Make a call to Prefect's API fail."""
    return mock.patch(where, side_effect=httpx.ReadTimeout("no answer"))


@pytest.mark.parametrize(
    "where",
    [
        "flows.show.artifacts.acreate_markdown_artifact",
        "prefect.client.orchestration.PrefectClient.release_concurrency_slots_with_lease",
    ],
    ids=["its artifact cannot be written", "its slot cannot be given back"],
)
async def test_a_finished_rotation_stays_completed(services: Services, where: str) -> None:
    """A failure after the rotation is only a warning in the log, because the rotation itself is complete."""
    rotation = await services.prepare(services.rotation())

    with broken(where):
        state = await rotate(rotation, return_state=True)

    assert state.is_completed(), state.message
    assert str(state.message).startswith("Rotated: ")


async def test_a_failed_run_keeps_its_sentence_when_the_artifact_cannot_be_written(services: Services) -> None:
    """The person on call reads the original error, and not that of the artifact."""
    rotation = services.rotation(destinations=["secret/there-is-none"])

    with broken("flows.show.artifacts.acreate_markdown_artifact"):
        state = await rotate(rotation, return_state=True)

    assert "rotation.destinations: the block secret/there-is-none does not exist" in str(state.message)


async def test_an_error_that_nobody_foresaw_stores_nothing_of_its_text(services: Services) -> None:
    """A library's error may quote the key, so neither the task's nor the run's state contains its text."""
    rotation = await services.prepare(services.rotation())

    def quotes_the_key(key: VerifiedKey, _held: Any) -> None:
        raise ValueError(f"cannot encode {key.secret.get_secret_value()}")

    with mock.patch.object(tasks.publish, "_has_arrived", quotes_the_key):
        state = await rotate(rotation, return_state=True)

    assert "Could not publish the new key: An unexpected ValueError was raised; the log says where." in str(
        state.message
    )
    told = [str(state.message), await failure_of_the_task(state)]
    assert "An unexpected ValueError was raised" in told[1]
    assert not [sentence for sentence in told for secret in services.openrouter.secrets if secret in sentence]


async def failure_of_the_task(state: State[Any]) -> str:
    """Return what Prefect has stored about the failed task; it records tasks a moment later."""
    run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    deadline = time.monotonic() + 30
    async with get_client() as client:
        while time.monotonic() < deadline:
            for task in await client.read_task_runs(flow_run_filter=run):
                if task.state and task.state.is_failed():
                    return str(task.state.message)
            await asyncio.sleep(0.1)
    raise AssertionError("no task has failed")


async def test_a_retirement_that_cannot_be_scheduled_is_told(services: Services) -> None:
    """Otherwise nobody would know that the old key outlives its overlap."""
    rotation = await services.prepare(services.rotation(overlap=timedelta(hours=1)))
    assert (await rotate(rotation, return_state=True)).is_completed()

    with broken("prefect.client.orchestration.PrefectClient.create_flow_run_from_deployment"):
        state = await rotate(rotation, return_state=True)

    assert "Prefect's API failed while scheduling a retirement (ReadTimeout)" in str(state.message)
    assert "Retry is safe" in str(state.message)


@pytest.mark.parametrize("field", ["emergency", "plan_only"])
async def test_a_switch_that_is_neither_on_nor_off_changes_nothing(services: Services, field: str) -> None:
    """The text "false" must not count as true, which would revoke older keys at once."""
    rotation = await services.prepare(services.rotation())

    state = await rotate(rotation, return_state=True, **{field: "false"})

    assert f"{field}: must be true or false. Nothing was changed." in str(state.message)
    assert services.openrouter.created == []


async def test_a_retry_of_a_completed_rotation_changes_nothing(services: Services) -> None:
    """Given a deleted ledger, only Prefect's own record shows that the run has completed; the Retry creates no key."""
    rotation = await services.prepare(services.rotation())
    run_id = await begin_rotation(rotation)
    await attempt(run_id)
    await delete_ledger(rotation.name)
    await retry(run_id)

    state = await attempt(run_id)

    assert str(state.message).startswith("Nothing to do: this run has completed before.")
    assert len(services.openrouter.created) == 1


async def test_a_result_storage_that_cannot_be_used_stops_no_rotation(services: Services) -> None:
    """A rotation stores no result, so the server's default storage does not concern it."""
    rotation = await services.prepare(services.rotation())
    async with get_client() as client:
        storage = await LocalFileSystem(basepath="/nobody/may/write/here").asave("broken", overwrite=True)
        await client.update_server_default_result_storage(UUID(str(storage)))
        document = await client.read_block_document(UUID(str(storage)))
        await client.update_block_document(document.id, BlockDocumentUpdate(data={"basepath": {"no": "text"}}))
        try:
            state = await attempt(await begin_rotation(rotation))
        finally:
            await client.clear_server_default_result_storage()

    assert state.is_completed(), state.message
