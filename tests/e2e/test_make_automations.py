"""One command creates the automations from their files; it can be repeated, and refuses what cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect import get_client
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.system import Secret
from prefect.blocks.webhook import Webhook
from pydantic import SecretStr

from blocks.errors import ConfigurationError
from flows.automations import make_automations, read_files
from tests.docs import pages
from tests.docs.worker import at_work
from tests.e2e.conftest import Services, with_pages
from tests.e2e.receivers import Receiver, web_receiver

pytestmark = with_pages
CRASHED_RUNS = "key-rotation-crashed-runs"
FAILED = "key-rotation-failed"


async def test_a_block_for_slack_is_accepted(services: Services, no_automations: None) -> None:
    """As far as it can be tested without Slack: the automations are created with a block that has a Slack webhook."""
    block = SlackWebhook(url=SecretStr("https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"))
    await block.asave("on-call", overwrite=True)

    done = await make_automations({"notify": "slack-webhook/on-call"})

    assert done[FAILED] == "created"


async def test_making_them_twice_makes_none_twice(services: Services, on_call: Receiver) -> None:
    """The command finds existing automations by name and updates them."""
    done = await make_automations({"notify": "custom-webhook/on-call"})

    assert set(done) == {wanted["name"] for wanted in read_files().values()}
    async with get_client() as client:
        there = [automation.name for automation in await client.read_automations()]
    assert sorted(there) == sorted(name for name, what in done.items() if what == "updated")


async def test_a_paused_automation_stays_paused(services: Services, on_call: Receiver) -> None:
    """An automation that a person has paused in the dashboard is not resumed."""
    async with get_client() as client:
        [automation] = await client.read_automations_by_name(FAILED)
        await client.pause_automation(automation.id)

        done = await make_automations({"notify": "custom-webhook/on-call"})

        [automation] = await client.read_automations_by_name(FAILED)
    assert not automation.enabled
    assert done[FAILED] == "updated, still paused"


async def test_what_is_not_given_is_left_out_and_said(services: Services, no_automations: None) -> None:
    """Without a block for notifications, only automations that need none are created."""
    done = await make_automations({})

    assert done[FAILED] == "skipped: requires --notify"
    assert done[CRASHED_RUNS] == "created"


async def test_what_cannot_work_is_refused_before_anything_is_made(services: Services, no_automations: None) -> None:
    """Each sentence names the option and the fault."""
    await Secret(value="not-yet-rotated").asave("key", overwrite=True)
    wrong = [
        ("notify", "slack-webhook", "write slack-webhook as <block type slug>/<name>."),
        (
            "notify",
            "slack-webhook/nobody",
            "the block slack-webhook/nobody does not exist; create it in the dashboard first.",
        ),
        ("notify", "secret/key", "secret/key is not a notification block."),
        ("webhook", "secret/key", "secret/key is not a block of type webhook."),
        ("restart", "nobody", "write nobody as <flow>/<deployment>."),
        ("restart", "nobody/here", "the deployment nobody/here does not exist; deploy it first."),
    ]

    refusals = [await refusal({option: name}) for option, name, _ in wrong]

    assert refusals == [f"--{option}: {why} Nothing was created." for option, _, why in wrong]
    async with get_client() as client:
        assert await client.read_automations_by_name(CRASHED_RUNS) == []


async def refusal(given: dict[str, str]) -> str:
    """Return the sentence with which the command refuses."""
    with pytest.raises(ConfigurationError) as refused:
        await make_automations(given)
    return str(refused.value)


def test_the_command_says_plainly_what_is_wrong(services: Services) -> None:
    """The command prints one sentence instead of a traceback."""
    with pytest.raises(RuntimeError) as failed:
        services.stack.module("flows.automations", "--notify", "slack-webhook/nobody")

    assert "the block slack-webhook/nobody does not exist; create it in the dashboard first." in str(failed.value)
    assert "Traceback" not in str(failed.value)


async def test_the_page_leads_to_somebody_who_is_told(services: Services, no_automations: None, tmp_path: Path) -> None:
    """The page's commands print what it promises, and its test notification arrives."""
    async with get_client() as client:
        await client.create_deployment(await client.create_flow_from_name("restart-consumers"), "checkout")
    await Webhook(url="https://example.com/restart").asave("restart", overwrite=True)
    with web_receiver() as receiver, at_work(services.stack):
        page = pages.read("how-to/notifications.md")

        promises = pages.follow(page, tmp_path, {"https://example.com/on-call": receiver.url}, services.stack.env)

        for promised, printed in promises:
            assert pages.prints(promised, printed), f"promised:\n{promised}\nprinted:\n{printed}"
        await receiver.waits_for("This is a try-out.")
        await receiver.waits_for("retire/retire failed", "nobody does not exist or has never run")
