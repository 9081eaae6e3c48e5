"""What a rotation does not need cannot stop it: one rule for every part of OpenRouter that an account may lack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blocks.errors import KeyRotationError
from sandbox.server import Fault
from tests.tasks.conftest import Life

CHECKOUT = Path(__file__).resolve().parents[3]
PARTS = {
    "workspaces": "workspaces",
    "guardrails": "guardrails",
    "byok": "BYOK credentials",
    "observability": "broadcast destinations",
}


def as_openrouter(status: int) -> Fault:
    """An error as OpenRouter spells it."""
    return Fault(status=status, body=json.dumps({"error": {"code": status, "message": "no"}}))


ANSWERS = {
    "403": as_openrouter(403),
    "404": as_openrouter(404),
    "500": as_openrouter(500),
    "no JSON": Fault(status=200, body="<html>not here</html>"),
}
SITUATIONS = ("first run", "later run", "plan", "audit")


async def outcome(life: Life, part: str, answer: str, situation: str) -> str:
    """What a run, a plan or an audit does where a part of the API gives an answer."""
    life.change(key={"inherit": True})
    if situation != "first run":
        await life.rotate()
    told = ANSWERS[answer]
    fault = life.app.state.faults.add(Fault(path=f"/api/v1/{part}", status=told.status, body=told.body))
    life.notes.clear()
    said = life.notes
    try:
        match situation:
            case "plan":
                await life.plan()
            case "audit":
                said = [str((await life.audit()).findings)]
            case _:
                await life.rotate()
    except KeyRotationError:
        return "fails"
    said = said or life.notes
    noted = sum(sentence.count(f"sees no {PARTS[part]}") for sentence in said)
    assert noted == (1 if fault.struck else 0)
    return "goes on, with a note" if fault.struck else "is not asked"


async def test_the_manual_says_what_each_missing_part_does(monkeypatch: pytest.MonkeyPatch, life: Life) -> None:
    """403 and 404 mean that there is nothing to carry over; what may pass by itself, or is no answer, is a failure."""
    monkeypatch.setattr("blocks.http.MAX_ATTEMPTS", 1)
    rows = []
    for part, title in PARTS.items():
        for answer in ANSWERS:
            found = [await outcome(await fresh(life), part, answer, situation) for situation in SITUATIONS]
            rows.append(f"| {title} | {answer} | {' | '.join(found)} |")

    manual = (CHECKOUT / "docs/how-to/openrouter.md").read_text()

    assert "\n".join(rows) in manual, "\n" + "\n".join(rows)


async def fresh(life: Life) -> Life:
    """The same servers, with nothing in them but the account and its management key."""
    sandbox = life.openrouter
    life.app.state.faults.clear()
    for key in list(sandbox.keys.values()):
        sandbox.delete_key(key)
    life.store.value = None
    return life


@pytest.mark.parametrize("status", [403, 404])
async def test_a_guardrail_that_is_asked_for_by_name_stays_an_error(life: Life, status: int) -> None:
    """What the rotation names, it needs."""
    life.change(key={"guardrail_id": "0b0e3c5e-1f3a-4d0b-9b59-2f8f3f3f5c11"})
    life.openrouter.lacks = {"guardrails": status}

    sentence = await life.failure(life.rotate())

    assert "guardrail" in sentence
    assert life.store.value["superseded"] == []


async def test_a_404_counts_whatever_its_body_is(life: Life) -> None:
    """It is documented nowhere what an account without a part answers."""
    life.app.state.faults.add(Fault(path="/api/v1/byok", status=404, body="<html>Not Found</html>"))
    await life.rotate()

    await life.rotate()

    assert [note for note in life.notes if "sees no BYOK credentials" in note]


async def test_a_403_of_a_proxy_is_a_failure(life: Life) -> None:
    """It says nothing about the account, and a place that is not carried over is an outage."""
    await life.rotate()
    life.app.state.faults.add(Fault(path="/api/v1/byok", status=403, body="<html>Forbidden</html>"))

    assert "answered 403, and not as OpenRouter does" in await life.failure(life.rotate())


async def test_a_key_that_is_gone_is_believed_without_workspaces(life: Life) -> None:
    """Given an account that shows no workspaces, its other keys prove that it is still the same one."""
    await life.rotate()
    former = await life.held()
    await life.rotate()
    life.openrouter.lacks = {"workspaces": 404}
    life.openrouter.delete_key(former)
    life.later(hours=24)

    await life.retire()

    assert life.ledger.superseded == ()
