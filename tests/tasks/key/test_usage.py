"""If a superseded key is kept because it is in use, the person on call learns by whom."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import httpx
import pytest

from sandbox.openrouter_account import StoredKey
from sandbox.server import Fault
from tasks.model.events import Event
from tests.tasks.conftest import FakeWorld

ERROR = json.dumps({"error": {"code": 500, "message": "no"}})


def use(world: FakeWorld, key: StoredKey, app: str, model: str) -> None:
    """Call a model as an application would."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {key.secret}", "X-Title": app}
    assert httpx.post(f"{world.url}/api/v1/chat/completions", json=body, headers=headers).status_code == 200


async def used_until_due(world: FakeWorld, **retirement: Any) -> StoredKey:
    """Return a key that is due, and that two applications have used since it was superseded."""
    quiet = {"retire_when": "unused", "quiet_time": timedelta(hours=2), "max_overlap": timedelta(days=2)}
    world.change(retirement={**quiet, **retirement})
    await world.rotate()
    former = await world.held()
    await world.rotate()
    world.later(hours=22)
    use(world, former, "Billing", "openai/gpt-4o")
    use(world, await world.held(), "Checkout", "openai/gpt-4o")
    world.later(hours=1)
    use(world, former, "Search", "anthropic/claude")
    world.later(hours=1)
    return former


USED = (
    "It was used by Search with anthropic/claude, last at 2026-12-17 02:30 UTC; Billing with openai/gpt-4o, last at "
    "2026-12-17 01:30 UTC."
)


async def test_of_many_uses_the_latest_are_told(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenRouter leaves rows above a limit out."""
    monkeypatch.setattr("blocks.openrouter.analytics.MAX_ROWS", 1)
    former = await used_until_due(world)

    uses = await world.client.uses_of(former.hash, world.time - timedelta(days=1), world.time)

    assert [use.by for use in uses] == ["Search with anthropic/claude"]


@pytest.mark.parametrize("tells_last_use", [True, False])
async def test_a_postponed_key_is_told_of_with_its_users(world: FakeWorld, tells_last_use: bool) -> None:
    """The note and the event name application, model and time, but no consumer of the current key."""
    world.openrouter.with_last_used_at = tells_last_use
    await used_until_due(world)

    await world.retire()

    [sentence] = [told["sentence"] for event, told in world.events if event is Event.KEY_REVOCATION_POSTPONED]
    assert USED in sentence
    assert sentence in world.notes


async def test_a_kept_key_is_told_of_with_its_users(world: FakeWorld) -> None:
    """The failed run that keeps a used key says whose consumer must be moved."""
    former = await used_until_due(world, on_still_used="keep")
    await world.retire()
    world.later(hours=23)
    use(world, former, "Billing", "openai/gpt-4o")
    world.later(hours=1)

    sentence = await world.failure(world.retire())

    assert "Billing with openai/gpt-4o, last at 2026-12-18 02:30 UTC" in sentence
    assert former.hash in world.openrouter.keys


@pytest.mark.parametrize("status", [403, 404])
async def test_without_analytics_the_sums_tell(world: FakeWorld, status: int) -> None:
    """The key is postponed nevertheless, because its total spending shows the use; its users are not named."""
    world.openrouter.lacks = {"analytics": status}
    await used_until_due(world)

    await world.retire()

    assert [note for note in world.notes if "spent" in note and "It was used by" not in note]


async def test_analytics_that_fail_do_not_fail_the_run(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the key is used is known without analytics."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)
    await used_until_due(world)
    world.app.state.faults.add(Fault(path="/analytics/", status=500, body=ERROR))

    await world.retire()

    assert [note for note in world.notes if "Which application uses it could not be determined" in note]


async def test_an_answer_about_every_key_is_not_believed(world: FakeWorld) -> None:
    """Given a hash that the analytics cannot resolve, OpenRouter drops the filter and reports other keys' users."""
    await world.rotate()
    use(world, await world.held(), "Checkout", "openai/gpt-4o")
    since = world.time - timedelta(days=1)
    world.later(minutes=1)

    assert await world.client.uses_of("f" * 64, since, world.time) == []
    assert len(await world.client.uses_of((await world.held()).hash, since, world.time)) == 1


async def test_a_key_without_budget_is_verified_with_a_note(world: FakeWorld) -> None:
    """402 and 403 prove that a key is valid, so it is published, with a note that it may not spend."""
    error = json.dumps({"error": {"code": 403, "message": "Workspace budget exceeded"}})
    world.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body=error))

    await world.rotate()

    assert (await world.held()).hash in world.openrouter.keys
    assert [note for note in world.notes if "valid, but its budget" in note]


@pytest.mark.parametrize("app", ["[Press Retry](https://evil.example)", "![x](//evil.example)", "<!channel> | `b`"])
async def test_a_name_that_whoever_holds_a_key_chose_is_no_markup(world: FakeWorld, app: str) -> None:
    """An application chooses its name, so a note with it holds no link, image or mention."""
    await used_until_due(world)
    use(world, world.key(world.superseded.hash), app, "m")
    world.later(minutes=1)

    await world.retire()

    [note] = [note for note in world.notes if "It was used by" in note]
    assert " with m, last at" in note
    assert not set("[]<>|`") & set(note)
