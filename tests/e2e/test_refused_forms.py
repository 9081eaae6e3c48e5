"""A form with an error is refused in plain sentences, and creates nothing."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.variables import Variable

from flows.add_rotation import CORRECT_IT
from sandbox.server import Fault
from tasks.world.deployments import read_timetable
from tasks.world.management_keys import PREFIX
from tests.e2e.conftest import Services, without_worker
from tests.e2e.form import HELP, add, added, deployed, form

pytestmark = without_worker


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rotate_at": "half past three"}, "rotate_at: "),
        ({"time_zone": "Atlantis"}, "time_zone: "),
        ({"spread": "13h"}, "spread: "),
        ({"interval_days": 0}, "interval_days: "),
        ({"key_name": " "}, "key_name: "),
        ({"limit_usd": -1}, "limit_usd: "),
        ({"limit_reset": "hourly"}, "limit_reset: "),
        ({"overlap": "48 bananas"}, "overlap: "),
        ({"rotation_name": "Not A Slug"}, "rotation_name: "),
        ({"destinations": []}, "destinations: "),
        ({"destinations": [{"$ref": "00000000-0000-0000-0000-000000000000"}]}, "destinations: "),
        ({"destinations": [None]}, "destinations: "),
        ({"other_destinations": ["secret/unknown"]}, "destinations: "),
        ({"other_destinations": ["openrouter-credentials/openrouter"]}, "destinations: "),
        ({"connection": "secret/unknown"}, "connection: "),
        ({"connection": "openrouter-credentials/unknown"}, "connection: "),
        ({"destinations": None}, "destinations: "),
        ({"other_destinations": 5}, "other_destinations: "),
        ({"auto_rotation": "false"}, "auto_rotation: "),
        ({"make_key_now": "no"}, "make_key_now: "),
    ],
)
async def test_a_wrong_field_makes_nothing(services: Services, changes: dict[str, Any], sentence: str) -> None:
    """The sentence begins with the field's name in the form; neither a deployment nor a key is created."""
    fields = await form(services, **{"make_key_now": True, **changes})

    state = await add(fields)

    assert state.is_failed()
    assert str(state.message).startswith(sentence)
    assert "Traceback" not in str(state.message)
    assert await deployed(str(fields["rotation_name"])) is None
    assert services.openrouter.created == []


async def test_a_destination_that_is_down_makes_nothing(services: Services) -> None:
    """Connection and destinations are checked before anything is created."""
    vault = await services.prepare(services.rotation(destinations=["vault-secret/down"]))
    fields = await form(services, make_key_now=True, other_destinations=vault.destinations)
    services.vault_app.state.faults.add(Fault(status=403, body='{"errors":["permission denied"]}'))

    state = await add(fields)

    assert state.is_failed()
    assert "Vault at" in str(state.message)
    assert await deployed(fields["rotation_name"]) is None
    assert services.openrouter.created == []


async def test_a_refused_management_key_makes_nothing(services: Services) -> None:
    """A management key that OpenRouter rejects is reported before anything is created."""
    fields = await form(services, make_key_now=True)
    services.openrouter.accounts[0].management_keys.clear()

    state = await add(fields)

    assert state.is_failed()
    assert "does not accept the management key" in str(state.message)
    assert await deployed(fields["rotation_name"]) is None
    assert services.openrouter.created == []


async def test_a_place_of_another_rotation_is_refused(services: Services) -> None:
    """Two rotations would overwrite each other's key; only the rotation that already publishes there may be changed."""
    fields = await form(services)
    name, taken = fields["rotation_name"], f"{fields['rotation_name']}-too"
    await add(fields)

    refused = await add({**fields, "rotation_name": taken})
    changed = await add({**fields, "interval_days": 7})

    assert refused.message == (
        f"destinations: secret/{name} is already a destination of the rotation {name}. Nothing was created. "
        f"{CORRECT_IT} {HELP}"
    )
    assert await deployed(taken) is None
    assert changed.is_completed(), changed.message


async def test_a_schedule_that_rotates_after_the_key_has_expired_is_refused(services: Services) -> None:
    """Given keys that expire, the form refuses an interval that would let the key expire before the next run."""
    fields = await form(services)
    made = await added(fields)
    expiring = {**made.parameters["rotation"], "key": {**made.parameters["rotation"]["key"], "expires_after": "P45D"}}
    async with get_client() as client:
        await client.update_deployment(made.id, DeploymentUpdate(parameters={"rotation": expiring}))

    refused = await add({"rotation_name": fields["rotation_name"], "interval_days": 90})
    changed = await add({"rotation_name": fields["rotation_name"], "interval_days": 7, "make_key_now": False})

    assert str(refused.message).startswith("interval_days: key.expires_after must not be shorter than interval, ")
    assert changed.is_completed(), changed.message
    after = await deployed(fields["rotation_name"])
    assert after is not None
    assert str(read_timetable(after.schedules[0].schedule)).startswith("every 7 days")


async def test_two_blocks_for_one_place_are_refused(services: Services) -> None:
    """Two blocks of different names for one place lead to one sentence, and nothing is created."""
    block = services.make("vault-secret")
    await block.asave("one", overwrite=True)
    await block.model_copy().asave("another", overwrite=True)
    fields = await form(services)

    refused = await add({**fields, "destinations": ["vault-secret/one", "vault-secret/another"]})

    assert refused.message == (
        f"destinations: vault-secret/one and vault-secret/another point to the same place, {block.place()}. "
        f"Nothing was created. {CORRECT_IT} {HELP}"
    )
    assert await deployed(fields["rotation_name"]) is None


async def test_a_block_for_the_place_of_another_rotation_is_refused(services: Services) -> None:
    """Its name is another one, and each rotation would overwrite the other's key."""
    block = services.make("vault-secret")
    await block.asave("theirs", overwrite=True)
    await block.model_copy().asave("ours", overwrite=True)
    theirs = await form(services, destinations=["vault-secret/theirs"])
    await add(theirs)
    ours = await form(services, destinations=["vault-secret/ours"])

    refused = await add(ours)

    assert refused.message == (
        f"destinations: vault-secret/theirs of the rotation {theirs['rotation_name']} and vault-secret/ours point to "
        f"the same place, {block.place()}. Nothing was created. {CORRECT_IT} {HELP}"
    )
    assert await deployed(ours["rotation_name"]) is None


async def test_everything_that_is_wrong_is_told_at_once(services: Services) -> None:
    """The message of one run names every wrong field, and links back to the form."""
    fields = await form(
        services, rotate_at="noon", time_zone="Berlin", overlap="a day", key_name="", limit_reset="hourly"
    )

    state = await add(fields)

    assert state.message == (
        "rotate_at: must be a local time in 24-hour format, such as 03:30. "
        "time_zone: must be an IANA time zone, such as Europe/Berlin. "
        "key_name: is required. limit_reset: must be none, daily, weekly or monthly. "
        f"overlap: must be a duration, such as 24h, 7d or PT24H. Nothing was created. {CORRECT_IT} {HELP}"
    )
    assert await deployed(fields["rotation_name"]) is None


@pytest.mark.parametrize(
    "changes", [{"other_destinations": ["secret/unknown"]}, {"review_only": True}], ids=["refused", "review only"]
)
async def test_a_form_that_creates_nothing_does_not_note_the_use_of_its_management_key(
    services: Services, changes: dict[str, Any]
) -> None:
    """Its connection works, but only what is carried out makes it one in use."""
    fields = await form(services)
    noted = f"{PREFIX}{services.connection}"

    await add({**fields, **changes})
    before = await Variable.aget(noted)
    await add(fields)

    assert before is None
    assert await Variable.aget(noted) is not None
