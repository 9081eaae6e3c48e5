"""Where a superseded key is kept because it is used, a person is told by whom."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import httpx
import pytest

from sandbox.openrouter_account import StoredKey
from sandbox.server import Fault
from tasks.model.events import Event
from tests.tasks.conftest import Life

ERROR = json.dumps({"error": {"code": 500, "message": "no"}})


def use(life: Life, key: StoredKey, app: str, model: str) -> None:
    """Call a model as an application."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {key.secret}", "X-Title": app}
    assert httpx.post(f"{life.url}/api/v1/chat/completions", json=body, headers=headers).status_code == 200


async def used_until_due(life: Life, **retirement: Any) -> StoredKey:
    """A superseded key that two applications used after it was superseded, and that is due."""
    quiet = {"retire_when": "unused", "quiet_time": timedelta(hours=2), "max_overlap": timedelta(days=2)}
    life.change(retirement={**quiet, **retirement})
    await life.rotate()
    former = await life.held()
    await life.rotate()
    life.later(hours=22)
    use(life, former, "Billing", "openai/gpt-4o")
    use(life, await life.held(), "Checkout", "openai/gpt-4o")
    life.later(hours=1)
    use(life, former, "Search", "anthropic/claude")
    life.later(hours=1)
    return former


USED = (
    "It was used by Search with anthropic/claude, last at 2026-12-17 02:30 UTC; Billing with openai/gpt-4o, last at "
    "2026-12-17 01:30 UTC."
)


@pytest.mark.parametrize("tells_last_use", [True, False])
async def test_a_postponed_key_is_told_of_with_its_users(life: Life, tells_last_use: bool) -> None:
    """The note and the event name application, model and time, and nobody who uses the current key."""
    life.openrouter.with_last_used_at = tells_last_use
    await used_until_due(life)

    await life.retire()

    [sentence] = [told["sentence"] for event, told in life.events if event is Event.KEY_REVOCATION_POSTPONED]
    assert USED in sentence
    assert sentence in life.notes


async def test_a_kept_key_is_told_of_with_its_users(life: Life) -> None:
    """The failure of a run that keeps a used key says whose consumer is to be moved."""
    former = await used_until_due(life, on_still_used="keep")
    await life.retire()
    life.later(hours=23)
    use(life, former, "Billing", "openai/gpt-4o")
    life.later(hours=1)

    sentence = await life.failure(life.retire())

    assert "Billing with openai/gpt-4o, last at 2026-12-18 02:30 UTC" in sentence
    assert former.hash in life.openrouter.keys


@pytest.mark.parametrize("status", [403, 404])
async def test_without_analytics_the_sums_tell(life: Life, status: int) -> None:
    """The key is postponed all the same, and nothing is said of its users."""
    life.openrouter.lacks = {"analytics": status}
    await used_until_due(life)

    await life.retire()

    assert [note for note in life.notes if "spent" in note and "It was used by" not in note]


async def test_analytics_that_fail_do_not_fail_the_run(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the key is used is known without them."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)
    await used_until_due(life)
    life.app.state.faults.add(Fault(path="/analytics/", status=500, body=ERROR))

    await life.retire()

    assert [note for note in life.notes if "By whom could not be asked" in note]


async def test_an_answer_about_every_key_is_not_believed(life: Life) -> None:
    """Given a hash that the analytics cannot resolve, the query runs without its filter and would name anybody."""
    await life.rotate()
    use(life, await life.held(), "Checkout", "openai/gpt-4o")
    since = life.time - timedelta(days=1)
    life.later(minutes=1)

    assert await life.client.uses_of("f" * 64, since, life.time) == []
    assert len(await life.client.uses_of((await life.held()).hash, since, life.time)) == 1


async def test_a_key_without_budget_is_verified_with_a_note(life: Life) -> None:
    """402 and 403 say that a key is valid: it is published, and the note says that it may not spend."""
    error = json.dumps({"error": {"code": 403, "message": "Workspace budget exceeded"}})
    life.app.state.faults.add(Fault("before", "GET", "/key$", status=403, body=error))

    await life.rotate()

    assert (await life.held()).hash in life.openrouter.keys
    assert [note for note in life.notes if "valid, but no budget" in note]
