"""A failure of what a rotation does not need cannot stop it: one rule for all optional parts of OpenRouter."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from blocks.errors import KeyRotationError
from sandbox.server import Fault
from tasks.world.optional import what_is_seen
from tests.tasks.conftest import FakeWorld

CHECKOUT = Path(__file__).resolve().parents[3]
PARTS = {
    "workspaces": "workspaces",
    "guardrails": "guardrails",
    "byok": "BYOK credentials",
    "observability": "broadcast destinations",
    "analytics": "analytics",
}


def as_openrouter(status: int) -> Fault:
    """Return an error in OpenRouter's format."""
    return Fault(status=status, body=json.dumps({"error": {"code": status, "message": "no"}}))


ANSWERS = {
    "403": as_openrouter(403),
    "404": as_openrouter(404),
    "500": as_openrouter(500),
    "no JSON": Fault(status=200, body="<html>not here</html>"),
    "no answer in time": None,
}
SITUATIONS = ("first run", "later run", "retirement", "plan", "audit")
UNUSED = {"retire_when": "unused", "quiet_time": timedelta(hours=2), "max_overlap": timedelta(days=2)}


class Silence:
    """A part of the API that does not answer in time, without anybody waiting for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.part = ""
        self.struck = 0
        send = httpx.AsyncHTTPTransport.handle_async_request

        async def unless_silent(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            if self.part and request.url.path.startswith(f"/api/v1/{self.part}"):
                self.struck += 1
                raise httpx.ReadTimeout("no answer in time")
            return await send(transport, request)

        monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", unless_silent)

    def of(self, part: str) -> Silence:
        """Silence a part."""
        self.part, self.struck = part, 0
        return self


async def prepare(world: FakeWorld, situation: str) -> None:
    """Bring a world into the situation; for a retirement, one of two keys that are due is in use."""
    world.change(key={"inherit": True}, retirement=UNUSED)
    if situation == "first run":
        return
    await world.rotate()
    if situation == "retirement":
        used = await world.held()
        await world.rotate()
        world.spend(await world.held(), "1")
        await world.rotate()
        world.later(hours=26)
        world.spend(used, "1")
        world.later(hours=1)


async def outcome(world: FakeWorld, part: str, answer: str, situation: str, silence: Silence) -> str:
    """Return how a run, a plan or an audit reacts to an answer of a part of the API."""
    await prepare(world, situation)
    told = ANSWERS[answer]
    fault = silence.of(part)
    if told:
        silence.of("")
        fault = world.app.state.faults.add(Fault(path=f"/api/v1/{part}", status=told.status, body=told.body))
    world.notes.clear()
    said = world.notes
    try:
        match situation:
            case "plan":
                await world.plan()
            case "audit":
                said = [str((await world.audit()).findings)]
            case "retirement":
                await world.retire()
            case _:
                await world.rotate()
    except KeyRotationError:
        return "fails"
    if not fault.struck:
        return "is not asked"
    said = said or world.notes
    noted = sum(sentence.count(f"sees no {PARTS[part]}") for sentence in said)
    noted += sum("could not be determined" in sentence for sentence in said)
    assert noted <= 1
    return "goes on, with a note" if noted else "goes on"


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
async def test_the_manual_says_what_each_missing_part_does(
    monkeypatch: pytest.MonkeyPatch, world: FakeWorld, part: str
) -> None:
    """After 403 and 404 there is nothing to carry over; other errors, no JSON and timeouts are failures."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)
    silence, rows = Silence(monkeypatch), []
    for answer in ANSWERS:
        found = [await outcome(await fresh(world, silence), part, answer, each, silence) for each in SITUATIONS]
        rows.append(f"| {PARTS[part]} | {answer} | {' | '.join(found)} |")

    manual = (CHECKOUT / "docs/how-to/openrouter.md").read_text()

    assert "\n".join(rows) in manual, "\n" + "\n".join(rows)


async def fresh(world: FakeWorld, silence: Silence) -> FakeWorld:
    """Return a world with the same servers, emptied except for the account and its management key."""
    sandbox = world.openrouter
    silence.of("")
    world.app.state.faults.clear()
    for key in list(sandbox.keys.values()):
        sandbox.delete_key(key)
    world.store.value = None
    return world


@pytest.mark.parametrize("status", [403, 404])
async def test_a_guardrail_that_is_asked_for_by_name_stays_an_error(world: FakeWorld, status: int) -> None:
    """A rotation cannot do without what it names."""
    world.change(key={"guardrail_id": "0b0e3c5e-1f3a-4d0b-9b59-2f8f3f3f5c11"})
    world.openrouter.lacks = {"guardrails": status}

    sentence = await world.failure(world.rotate())

    assert "guardrail" in sentence
    assert world.store.value["superseded"] == []


async def test_a_check_shows_a_part_that_is_refused_beside_the_others(world: FakeWorld) -> None:
    """Given an account whose default workspace was deleted, its lists are refused, and the check shows the rest."""
    world.app.state.faults.add(Fault(path="/api/v1/byok", status=400, body=as_openrouter(400).body))
    world.openrouter.lacks = {"analytics": 404}

    sentence = await what_is_seen(world.client)

    assert "It can read workspaces, guardrails, broadcast destinations." in sentence
    assert "hides from it, analytics." in sentence
    assert (
        "refused to show BYOK credentials (400), so the account's default workspace may have been deleted" in sentence
    )


async def test_a_part_that_fails_for_another_reason_fails_the_check(world: FakeWorld) -> None:
    """A server that is away says nothing about the account."""
    world.app.state.faults.add(Fault(path="/api/v1/byok", status=401, body=as_openrouter(401).body))

    assert "401" in await world.failure(what_is_seen(world.client))


async def test_a_404_counts_whatever_its_body_is(world: FakeWorld) -> None:
    """It is not documented how an account without a part answers, so the status alone decides."""
    world.app.state.faults.add(Fault(path="/api/v1/byok", status=404, body="<html>Not Found</html>"))
    await world.rotate()

    await world.rotate()

    assert [note for note in world.notes if "sees no BYOK credentials" in note]


async def test_a_403_of_a_proxy_is_a_failure(world: FakeWorld) -> None:
    """It says nothing about the account, and a consumer whose new key misses a list has an outage."""
    await world.rotate()
    world.app.state.faults.add(Fault(path="/api/v1/byok", status=403, body="<html>Forbidden</html>"))

    assert "answered 403, but not in OpenRouter's format" in await world.failure(world.rotate())


async def test_a_key_that_is_gone_is_believed_without_workspaces(world: FakeWorld) -> None:
    """Given an account that does not list its workspaces, its other keys prove that it is still the same account."""
    await world.rotate()
    former = await world.held()
    await world.rotate()
    world.openrouter.lacks = {"workspaces": 404}
    world.openrouter.delete_key(former)
    world.later(hours=24)

    await world.retire()

    assert world.ledger.superseded == ()
