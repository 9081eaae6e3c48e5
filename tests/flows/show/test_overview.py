"""The overview: the health of a rotation, and what a person reads about it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from rich.console import Console

from flows.show.overview import CROWD, HEADER, Health, Row, as_page, row, summary
from flows.status import as_json, show
from tasks.model.ledger import Ledger
from tasks.model.records import Current, Pending, Superseded
from tasks.model.tries import TRIES_AGAIN
from tasks.world.inventory import Facts, SeenRun

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
RUN = UUID(int=7)
DEPLOYMENT: dict[str, Any] = {
    "id": str(UUID(int=8)),
    "schedules": [{"slug": "auto-rotation", "active": True}],
    "paused": False,
    "work_pool_name": "key-rotation",
    "status": "NOT_READY",
    "parameters": {
        "rotation": {
            "name": "checkout",
            "connection": "openrouter",
            "key": {"name": "checkout service"},
            "destinations": ["secret/checkout"],
        }
    },
}


def made(label: str) -> dict[str, Any]:
    """Return the fields of a key in a ledger."""
    return {"hash": label, "label": label, "fingerprint": "0" * 16, "made_by": RUN, "connection": "openrouter"}


def superseded(revoke_at: datetime) -> Superseded:
    """Return a superseded key."""
    return Superseded(**made("old-key"), revoke_at=revoke_at)


def seen(state: str, message: str = "", at: datetime = NOW) -> SeenRun:
    """Return a run as Prefect shows it."""
    return SeenRun(str(RUN), state, message, at)


TRY = SeenRun(str(RUN), "SCHEDULED", "", NOW + timedelta(minutes=5), is_try=True)


CURRENT = Current(**made("new-key"), since=NOW - timedelta(days=3), rotated_by=RUN, destinations=("secret/checkout",))
WELL = Facts(
    "checkout",
    Ledger(current=CURRENT),
    deployment=DEPLOYMENT,
    next_run=seen("SCHEDULED", at=NOW + timedelta(days=27)),
    last_run=seen("COMPLETED", "Rotated."),
)
PENDING = Pending(run_id=RUN, connection="openrouter", destinations=("secret/checkout",), intended_at=NOW)


def test_a_healthy_rotation_needs_nobody() -> None:
    """It has its current key by label, the key's age and the next run, and nothing to do."""
    found = row(WELL, NOW)

    assert found.cells() == (
        "checkout",
        "healthy",
        "new-key, 3 d",
        "28 Mar 12:00",
        "completed 1 Mar 12:00",
        "none",
    )
    assert found.needs == ""


@pytest.mark.parametrize(
    ("changes", "health", "says"),
    [
        ({"last_run": seen("FAILED", "publish failed")}, Health.FAILED, "press Retry, which is safe"),
        ({"last_run": seen("FAILED", "publish failed")}, Health.FAILED, "Message: publish failed"),
        (
            {"last_run": seen(TRIES_AGAIN, "publish failed"), "next_run": TRY},
            Health.DEGRADED,
            "is tried again automatically. Message: publish",
        ),
        (
            {"last_run": seen(TRIES_AGAIN)},
            Health.FAILED,
            "the next try was cancelled or deleted: open that run and press Retry",
        ),
        ({"last_run": seen("CRASHED")}, Health.FAILED, "The last run crashed: open that run and press Retry"),
        (
            {"last_run": seen("CRASHED"), "next_run": TRY},
            Health.DEGRADED,
            "The last run crashed, and is tried again automatically.",
        ),
        ({"last_run": seen("CANCELLED"), "ledger": Ledger(pending=PENDING)}, Health.DEGRADED, "is pending"),
        ({"last_run": seen("RUNNING"), "ledger": Ledger(current=CURRENT, pending=PENDING)}, Health.HEALTHY, ""),
        ({"ledger": None, "damage": "The ledger is damaged."}, Health.FAILED, "The ledger is damaged."),
        ({"ledger": Ledger(), "last_run": None}, Health.DEGRADED, "No key yet"),
        ({"last_run": None}, Health.DEGRADED, "The last result is unknown"),
        ({"deployment": None, "next_run": None}, Health.DEGRADED, "the key is not rotated"),
        (
            {"deployment": {**DEPLOYMENT, "parameters": {"rotation": {"name": "checkout"}}}},
            Health.FAILED,
            "No run will rotate the key: rotation.connection: ",
        ),
        (
            {"deployment": None, "ledger": Ledger(superseded=(superseded(NOW + timedelta(days=9)),), removed=True)},
            Health.HEALTHY,
            "",
        ),
        ({"ledger": Ledger(removed=True)}, Health.DEGRADED, "No key yet: run the rotation."),
        ({"twins": ("eu",)}, Health.DEGRADED, "rotate/eu also rotates checkout: give it a rotation.name of its own."),
        (
            {"deployment": {**DEPLOYMENT, "work_pool_name": None}},
            Health.FAILED,
            "No run will start: its work pool was deleted. ",
        ),
        ({"deployment": {**DEPLOYMENT, "work_pool_name": None, "status": "READY"}}, Health.HEALTHY, ""),
        (
            {"next_run": seen("SCHEDULED", at=NOW - timedelta(hours=1))},
            Health.DEGRADED,
            "is late: check that a worker is running and that its work pool is not paused.",
        ),
        ({"next_run": seen("SCHEDULED", at=NOW - timedelta(minutes=1))}, Health.HEALTHY, ""),
        (
            {"ledger": Ledger(current=CURRENT, superseded=(superseded(NOW - timedelta(hours=1)),))},
            Health.DEGRADED,
            "was due for revocation",
        ),
        ({"ledger": Ledger(current=CURRENT, superseded=(superseded(NOW + timedelta(hours=1)),))}, Health.HEALTHY, ""),
    ],
    ids=[
        "failed",
        "failed with a sentence",
        "tried again",
        "tried again no more",
        "crashed",
        "crashed, and tried again",
        "cancelled in mid-rotation",
        "at work",
        "damaged ledger",
        "no key yet",
        "no run found",
        "no deployment",
        "a deployment that every run refuses",
        "a removed rotation whose key ends later",
        "a removed rotation that was added again",
        "two deployments of one rotation",
        "its pool was deleted",
        "served by a process without a pool",
        "late run",
        "run about to start",
        "overdue key",
        "key inside its overlap",
    ],
)
def test_what_is_wrong_is_judged_and_told(changes: dict[str, Any], health: Health, says: str) -> None:
    """Each fault has its health and one sentence for the person on call."""
    found = row(replace(WELL, **changes), NOW)

    assert found.health is health
    assert says in found.needs
    assert bool(found.needs) is (health is not Health.HEALTHY)


@pytest.mark.parametrize("ends", [NOW - timedelta(days=2), NOW + timedelta(days=2)], ids=["overdue", "not yet due"])
def test_a_key_whose_retirement_was_cancelled_is_shown_as_kept_alive(ends: datetime) -> None:
    """A cancelled retirement keeps a key alive, and the overview says so for as long as the key exists."""
    ledger = Ledger(current=CURRENT, superseded=(superseded(ends),))

    found = row(replace(WELL, ledger=ledger, cancelled=frozenset({ends})), NOW)

    assert found.superseded == "old-key kept: retirement cancelled"
    assert found.health is Health.DEGRADED


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "old-key until 2 Mar 12:00"),
        ({"postponed": 1}, "old-key next check 2 Mar 12:00"),
        ({"postponed": 1, "disabled": True}, "old-key disabled, deleted at 2 Mar 12:00"),
    ],
)
def test_a_key_that_may_outlive_its_next_look_is_not_said_to_end_then(changes: dict[str, Any], told: str) -> None:
    """After a retirement was postponed because the key was in use, it may be postponed again."""
    key = superseded(NOW + timedelta(days=1)).model_copy(update=changes)

    assert row(replace(WELL, ledger=Ledger(current=CURRENT, superseded=(key,))), NOW).superseded == told


def test_a_cancelled_retirement_of_a_key_that_is_gone_is_not_shown() -> None:
    """Once the key is revoked, there is nothing left to report."""
    assert row(replace(WELL, cancelled=frozenset({NOW})), NOW).health is Health.HEALTHY


@pytest.mark.parametrize(("days", "told"), [(27, "28 Mar 12:00"), (3650, "26 Feb 2037")], ids=["near", "far"])
def test_a_moment_far_away_has_its_year(days: int, told: str) -> None:
    """A near time is shown to the minute, a distant one as a date."""
    facts = replace(WELL, next_run=seen("SCHEDULED", at=NOW + timedelta(days=days)))

    assert row(facts, NOW).next_run == told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schedules": [{"slug": "auto-rotation", "active": False}]}, "manual only"),
        ({"schedules": []}, "manual only"),
        ({"paused": True}, "manual only"),
        ({}, "not scheduled yet"),
    ],
)
def test_without_a_scheduled_run_it_says_why(changes: dict[str, Any], says: str) -> None:
    """Auto-rotation that is off is a person's choice, and no fault."""
    found = row(replace(WELL, deployment={**DEPLOYMENT, **changes}, next_run=None), NOW)

    assert found.next_run == says
    assert found.health is Health.HEALTHY


def test_the_page_shows_the_worst_first_and_stays_a_table() -> None:
    """Line breaks and vertical bars in a message cannot break the page."""
    broken = replace(WELL, name="billing", last_run=seen("FAILED", "publish | failed\nat Vault"))

    with temporary_settings({PREFECT_UI_URL: None, PREFECT_API_URL: None}):
        page = as_page([row(WELL, NOW), row(broken, NOW)], NOW)

    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert lines[2].startswith("| billing |")
    assert {line.count("|") for line in lines} == {len(HEADER) + 1}


def test_what_needs_a_person_stands_above_the_table() -> None:
    """Each rotation in trouble has a line, because its sentence is too long for a cell."""
    broken = replace(WELL, name="billing", last_run=seen("FAILED", "publish failed\nat Vault"))

    with temporary_settings({PREFECT_UI_URL: None, PREFECT_API_URL: None}):
        page = as_page([row(WELL, NOW), row(broken, NOW)], NOW)

    before, _, table = page.partition("| Rotation |")
    [told] = [line for line in before.splitlines() if line.startswith("- ")]
    assert told.startswith("- **billing** (failed): The last run failed:")
    assert told.endswith("Message: publish failed at Vault")
    assert "publish failed" not in table


def test_the_terminal_breaks_no_word_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a person may want to copy is on one line, and what needs a person follows the table."""
    label = "sk-or-v1-0e6...1c96"
    key = superseded(NOW + timedelta(hours=1)).model_copy(update={"label": "sk-or-v1-aaa...bbbb"})
    ledger = Ledger(current=CURRENT.model_copy(update={"label": label}), superseded=(key,))
    broken = replace(WELL, name="checkout-of-the-shop", ledger=ledger, last_run=seen("FAILED", "It failed."))
    waiting = replace(WELL, next_run=None, last_run=seen("COMPLETED", at=NOW - timedelta(days=400)))
    rows = [row(broken, NOW), row(waiting, NOW)]

    show(rows, Console(width=80))

    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert {word for each in rows for text in each.cells()[:-1] for word in text.split()} <= set(printed.split())
    assert "checkout-of-the-shop: superseded: sk-or-v1-aaa...bbbb until 1 Mar 13:00" in printed
    assert "checkout-of-the-shop: The last run failed:" in printed.partition(label)[2]


@pytest.mark.parametrize("age", [timedelta(seconds=-30), timedelta(0), timedelta(minutes=59)])
def test_the_age_of_a_young_key_is_below_an_hour(age: timedelta) -> None:
    """It is never negative, although the clocks of worker and reader may differ."""
    current = CURRENT.model_copy(update={"since": NOW - age})

    assert row(replace(WELL, ledger=Ledger(current=current)), NOW).current == "new-key, below 1 h"


def test_every_name_on_the_page_is_a_link() -> None:
    """They lead to the rotation's page, its deployment, its next run and its last one."""
    broken = replace(WELL, last_run=seen("FAILED", "It failed."), next_run=replace(seen("SCHEDULED"), id="next"))
    with temporary_settings({PREFECT_UI_URL: "https://prefect.example/v2"}):
        page = as_page([row(broken, NOW)], NOW)

    at = "https://prefect.example/v2"
    deployment = f"([deployment]({at}/deployments/deployment/{UUID(int=8)}))"
    assert f"| [checkout]({at}/artifacts/key/rotation-checkout) {deployment} |" in page
    assert f"| [1 Mar 12:00]({at}/runs/flow-run/next) | [failed 1 Mar 12:00]({at}/runs/flow-run/{RUN}) |" in page
    assert f"- **[checkout]({at}/artifacts/key/rotation-checkout)** (failed): " in page
    assert f"[Last run]({at}/runs/flow-run/{RUN})" in page


def test_without_an_address_of_the_dashboard_the_page_has_no_links() -> None:
    """A broken link would be worse than none."""
    with temporary_settings({PREFECT_UI_URL: None, PREFECT_API_URL: None}):
        assert "](" not in as_page([row(WELL, NOW)], NOW)


def test_the_page_says_at_what_time_it_was_so() -> None:
    """The time that the dashboard shows for an artifact may differ from that of its content."""
    assert "As of 2027-03-01 12:00 UTC." in as_page([], NOW)


def test_programs_get_times_and_addresses() -> None:
    """A program must not have to parse a sentence."""
    ledger = Ledger(current=CURRENT, superseded=(superseded(NOW),))
    with temporary_settings({PREFECT_UI_URL: "https://prefect.example/v2"}):
        told = as_json(row(replace(WELL, ledger=ledger), NOW))

    assert told == {
        "rotation": "checkout",
        "health": "healthy",
        "needs": "",
        "current": {"label": "new-key", "since": "2027-02-26T12:00:00+00:00"},
        "superseded": [{"label": "old-key", "revoke_at": "2027-03-01T12:00:00+00:00", "disabled": False}],
        "next_run": {
            "id": str(RUN),
            "state": "SCHEDULED",
            "at": "2027-03-28T12:00:00+00:00",
            "message": "",
            "url": f"https://prefect.example/v2/runs/flow-run/{RUN}",
        },
        "last_run": {
            "id": str(RUN),
            "state": "COMPLETED",
            "at": "2027-03-01T12:00:00+00:00",
            "message": "Rotated.",
            "url": f"https://prefect.example/v2/runs/flow-run/{RUN}",
        },
        "deployment_url": f"https://prefect.example/v2/deployments/deployment/{UUID(int=8)}",
        "page_url": "https://prefect.example/v2/artifacts/key/rotation-checkout",
    }


def test_the_summary_counts() -> None:
    """The summary gives the number of rotations for each health."""
    rows = [row(WELL, NOW), row(replace(WELL, last_run=seen("FAILED")), NOW)]

    assert summary(rows) == "2 rotations: 1 healthy, 1 failed."
    assert summary([]) == "0 rotations: none yet."


def due(number: int, at: datetime) -> list[Row]:
    """Return rotations that are due at a time."""
    return [row(replace(WELL, name=f"due-{each}", next_run=seen("SCHEDULED", at=at)), NOW) for each in range(number)]


def test_a_spread_is_suggested_where_many_rotations_share_a_minute() -> None:
    """Seconds are ignored, and rotations of other minutes are not counted."""
    at = datetime(2027, 3, 2, 3, 30, tzinfo=UTC)
    rows = [*due(CROWD, at), *due(1, at.replace(second=40)), *due(CROWD, at + timedelta(minutes=1))]

    told = [line for line in as_page(rows, NOW).splitlines() if line.startswith("- ")]

    assert told == [
        "- 21 rotations are due at 2027-03-02 03:30 UTC: give them a Spread in the form of add-rotation, such as 2h."
    ]
