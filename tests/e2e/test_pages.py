"""The how-to pages, followed exactly as they are written, and the rotations that use the results."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import RRuleSchedule
from prefect.variables import Variable

import blocks
from blocks import OpenRouterCredentials
from flows import add_rotation, check_connections, rotate
from flows.deployments import read_deployment, save_deployment
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.setup import CONNECTION, SECRET
from sandbox.stack import CHECKOUT
from tasks.world.inventory import read_deployments
from tasks.world.management_keys import PREFIX
from tests.by_hand import delete_ledger, ledger_of, ledger_value
from tests.docs import pages
from tests.docs.worker import at_work
from tests.e2e.conftest import Services, numbers, with_pages
from tests.e2e.driver import deploy
from tests.e2e.following import follow, rotated

pytestmark = with_pages
EVERY_MONTH = RRuleSchedule(rrule="DTSTART:20261201T033000\nRRULE:FREQ=DAILY;INTERVAL=30", timezone="Europe/Berlin")
NEW_MANAGEMENT_KEY = f"sk-or-v1-{'7' * 64}"


@pytest.fixture
def connection() -> str:
    """The name of the connection in the pages."""
    return CONNECTION


async def test_openrouter(services: Services, tmp_path: Path) -> None:
    """The page leads from an empty server to a first key, with the automation and the deployments."""
    shutil.copy(CHECKOUT / "prefect.yaml", tmp_path)
    shutil.copytree(CHECKOUT / "automations", tmp_path / "automations")
    await OpenRouterCredentials.adelete(CONNECTION)
    await Secret.adelete(SECRET)
    await delete_ledger("example")

    with at_work(services.stack):
        follow("how-to/openrouter.md", services, tmp_path, typed=DEFAULT_MANAGEMENT_KEY + "\n")

    [live] = services.openrouter.live_keys()
    async with get_client() as client:
        assert await client.read_automations_by_name("key-rotation-crashed-runs")
        assert await client.read_deployment_by_name("rotate/example")
        known = [await client.read_block_type_by_slug(block.get_block_type_slug()) for block in blocks.BLOCKS]
    assert all(kind.logo_url and kind.description and kind.code_example for kind in known)
    stored: Any = await Secret.aload(SECRET)
    assert stored.get() == live.secret


async def test_adopting_a_key(services: Services, tmp_path: Path) -> None:
    """The page leads to a first rotation that supersedes the key that applications already used."""
    former = services.openrouter.add_key(services.openrouter.accounts[0], {"name": "made by hand"})
    [destination] = (await services.prepare(services.rotation())).destinations
    await Secret(value=former.secret).asave(destination.partition("/")[2], overwrite=True)
    connection = await OpenRouterCredentials.aload(CONNECTION)
    page = pages.read("how-to/adopt.md")
    await delete_ledger("checkout")
    form = {"key_name": "checkout", "other_destinations": [destination], "rotation_name": "checkout"}
    added = await add_rotation(connection, **form, make_key_now=False, return_state=True)

    with at_work(services.stack):
        promises = pages.follow(page, tmp_path, {}, services.stack.env, former.hash + "\n")

    ledger = await ledger_of("checkout")
    assert added.is_completed(), added.message
    assert all(pages.prints(promised, printed) for promised, printed in promises)
    assert [key.hash for key in ledger.superseded] == [former.hash]


async def test_exchanging_a_management_key(services: Services, tmp_path: Path) -> None:
    """The page "exchange-management-key" stores another key of the account in the block, and its age restarts."""
    for deployment in await read_deployments():
        async with get_client() as client:
            await client.delete_deployment(UUID(deployment["id"]))
    await services.connect(services.openrouter_url)
    rotation = await services.prepare(services.rotation())
    await save_deployment(None, rotation, EVERY_MONTH, active=False)
    await check_connections(return_state=True)
    before: Any = await Variable.aget(f"{PREFIX}{CONNECTION}")
    services.openrouter.accounts[0].management_keys.add(NEW_MANAGEMENT_KEY)
    services.stack.cli("deploy", "--no-prompt", "--name", "check-connections")

    with at_work(services.stack):
        follow("how-to/exchange-management-key.md", services, tmp_path, typed=NEW_MANAGEMENT_KEY + "\n")

    after: Any = await Variable.aget(f"{PREFIX}{CONNECTION}")
    connection: Any = await OpenRouterCredentials.aload(CONNECTION)
    assert connection.management_key.get_secret_value() == NEW_MANAGEMENT_KEY
    assert after["fingerprint"] != before["fingerprint"]
    assert after["since"] > before["since"]


async def test_what_is_done_with_a_rotation(services: Services, tmp_path: Path) -> None:
    """Every command on the pages about an existing rotation works, and the runs that it starts complete."""
    services.connection = f"openrouter-of-example-{next(numbers)}"  # an audit finds nothing of other pages
    await services.connect(services.openrouter_url)
    await delete_ledger("example")
    deployed = ("apply-settings", "audit", "remove-rotation", "restore-key", "retire")
    services.stack.cli("deploy", "--no-prompt", *(word for name in deployed for word in ("--name", name)))
    wanted = services.rotation(name="example", destinations=["vault-secret/example"], overlap=timedelta(days=1))
    rotation = await services.prepare(wanted)
    await save_deployment(await read_deployment("example"), rotation, EVERY_MONTH, active=False)
    for _ in range(2):
        assert (await rotate(rotation, return_state=True)).is_completed()
    names = ("audit", "change-rotation", "restore-key", "rotate", "emergency", "remove-rotation")
    page = [block for name in names for block in pages.read(f"how-to/{name}.md")]
    here = {
        "connection=openrouter": f"connection={rotation.connection}",
        "rotate/checkout": "rotate/example",
        "rotation=checkout": "rotation=example",
    }

    with at_work(services.stack):
        promises = pages.follow(page, tmp_path, here, services.stack.env)

    assert [printed for promised, printed in promises if not pages.prints(promised, printed)] == []
    assert promises
    assert await ledger_value("example") is None


async def test_writing_a_key_off(services: Services, tmp_path: Path) -> None:
    """Given a superseded key whose connection was deleted, the page's command removes it from the ledger."""
    await delete_ledger("example")
    services.stack.cli("deploy", "--no-prompt", "--name", "write-off-key")
    former = f"openrouter-of-a-closed-account-{next(numbers)}"
    wanted = {"name": "example", "destinations": ["vault-secret/example"], "overlap": timedelta(days=1)}
    rotations = [services.rotation(**wanted, connection=former)]
    rotations += [rotations[0].model_copy(update={"connection": "openrouter"})]
    for rotation in rotations:
        services.connection = rotation.connection
        await services.connect(services.openrouter_url)
        assert (await rotate(await services.prepare(rotation), return_state=True)).is_completed()
    await OpenRouterCredentials.adelete(former)
    superseded = (await ledger_of("example")).superseded
    here = {"sk-or-v1-0e6...1c96": superseded[0].label}

    with at_work(services.stack):
        pages.follow(pages.read("how-to/write-off.md"), tmp_path, here, services.stack.env)

    ledger = await ledger_of("example")
    assert ledger.superseded == ()
    assert [entry.hash for entry in ledger.written_off] == [superseded[0].hash]


@pytest.mark.parametrize("page", ["reference/blocks.md", "reference/settings.md"])
async def test_the_commands_of_the_reference(page: str, services: Services, tmp_path: Path) -> None:
    """Each command works exactly as it is written."""
    follow(page, services, tmp_path)


async def test_adding_a_rotation(services: Services, tmp_path: Path) -> None:
    """Everything that the page deploys exists afterwards."""
    shutil.copy(CHECKOUT / "prefect.yaml", tmp_path)

    follow("how-to/add-rotation.md", services, tmp_path)

    async with get_client() as client:
        assert await client.read_deployment_by_name("retire/retire")


async def test_what_an_upgrade_makes_again(services: Services, tmp_path: Path) -> None:
    """Blocks, deployments and automations are created or updated as how-to/upgrade.md says."""
    shutil.copy(CHECKOUT / "prefect.yaml", tmp_path)
    shutil.copytree(CHECKOUT / "automations", tmp_path / "automations")

    follow("how-to/upgrade.md", services, tmp_path)

    async with get_client() as client:
        assert await client.read_deployment_by_name("retire/retire")


async def test_monitoring(services: Services, tmp_path: Path) -> None:
    """For a rotation with a key, the file has the fields that how-to/monitor.md names."""
    rotation = services.rotation()
    await deploy(await services.prepare(rotation))
    await rotated(services, rotation)

    follow("how-to/monitor.md", services, tmp_path)

    [mine] = [
        each for each in json.loads((tmp_path / "rotations.json").read_text()) if each["rotation"] == rotation.name
    ]
    assert {"health", "needs", "current", "superseded", "next_run", "last_run"} <= set(mine)
    assert mine["current"]["since"]
