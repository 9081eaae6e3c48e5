"""The facts about all rotations, read in few requests whatever else Prefect contains."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tasks.world import api
from tasks.world.inventory import read_facts
from tasks.world.orchestrator import PrefectWorld

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
MANY = 500
Json = dict[str, Any]


class Prefect:
    """The part of Prefect's API that the overview uses; each rotation has a ledger and three scheduled runs.

    Args:
        rotations: The number of rotations.
    """

    def __init__(self, rotations: int) -> None:
        self.asked: Counter[str] = Counter()
        self.ledgers: dict[int, Json] = {}
        self.deployments: list[Json] = [
            {"id": f"d{n}", "name": f"r{n}", "tags": [], "parameters": {"rotation": {"name": f"r{n}"}}}
            for n in range(rotations)
        ]
        self.runs: list[Json] = []
        for n in range(rotations):
            for day in (1, 2, 3):
                self.run(n, "SCHEDULED", NOW + timedelta(days=day))

    def run(self, number: int, state: str, start: datetime, *, started: bool = True) -> None:
        """Add a run of a rotation."""
        begun = start.isoformat() if started and state != "SCHEDULED" else None
        self.runs.append(
            {
                "id": str(len(self.runs)),
                "flow": "rotate",
                "deployment_id": f"d{number}",
                "parameters": {"rotation": {"name": f"r{number}"}},
                "state_type": state,
                "state": {"message": f"It is {state}."},
                "start_time": begun,
                "end_time": begun,
                "expected_start_time": start.isoformat(),
            }
        )

    async def request(self, _method: str, route: str, *, json: Json) -> Any:
        """Answer like the server."""
        self.asked[route] += 1
        match route:
            case "/variables/filter":
                found = [
                    {
                        "id": str(UUID(int=n)),
                        "name": f"key-rotation_{each['name']}_00000001",
                        "value": self.ledgers.get(n, {"format": 1}),
                    }
                    for n, each in enumerate(self.deployments)
                ]
            case "/deployments/filter":
                found = self.deployments
            case _:
                found = [run for run in self.runs if self._is_wanted(run, json)]
                ascending = json["sort"] == "NEXT_SCHEDULED_START_TIME_ASC"
                found.sort(key=lambda run: str(run["expected_start_time"]), reverse=not ascending)
        page = found[json["offset"] : json["offset"] + json["limit"]]
        return SimpleNamespace(json=lambda: page)

    def _is_wanted(self, run: Json, asked: Json) -> bool:
        only, states = asked["flow_runs"], asked["flow_runs"]["state"]["type"]
        among = asked.get("deployments", {}).get("id", {}).get("any_", [run["deployment_id"]])
        return (
            run["flow"] in asked["flows"]["name"]["any_"]
            and run["state_type"] in states.get("any_", [run["state_type"]])
            and run["state_type"] not in states.get("not_any_", [])
            and (run["start_time"] is not None or "start_time" not in only)
            and run["deployment_id"] in among
        )


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    """A server with many rotations."""
    prefect = Prefect(MANY)
    monkeypatch.setattr(api, "get_or_create_client", lambda: (prefect, None))
    return prefect


async def last(rotation: str) -> tuple[str, str] | None:
    """Return the state and the message of a rotation's last run."""
    [found] = [facts for facts in await read_facts() if facts.name == rotation]
    return (found.last_run.state, found.last_run.message) if found.last_run else None


async def test_a_page_holds_many_rotations(prefect: Prefect) -> None:
    """Five hundred rotations, each with one past and three scheduled runs, are read in a fixed number of requests."""
    for n in range(MANY):
        prefect.run(n, "COMPLETED", NOW - timedelta(minutes=n))

    found = await read_facts()

    assert len(found) == MANY
    assert prefect.asked == {"/variables/filter": 3, "/deployments/filter": 3, "/flow_runs/filter": 8 + 3 + 1 + 1}


async def test_a_ledger_that_cannot_be_read_hides_no_other_rotation(prefect: Prefect) -> None:
    """Given a time without a zone in one ledger, it is told of this rotation, and the others are read."""
    prefect.ledgers[0] = {"emergency": {"run_id": str(UUID(int=1)), "at": "2026-12-24T00:00:00"}}

    found = await read_facts()

    assert {facts.name for facts in found if facts.ledger is None} == {"r0"}
    assert {facts.damage for facts in found if facts.name != "r0"} == {""}
    assert "cannot be read (at emergency.at)" in next(facts.damage for facts in found if facts.name == "r0")


async def test_a_second_deployment_of_a_rotation_is_named(prefect: Prefect) -> None:
    """Given a copy with an unchanged rotation name, the rotation is listed once, with its own deployment."""
    prefect.deployments.insert(0, {**prefect.deployments[0], "id": "copy", "name": "r0-eu"})

    [found] = [facts for facts in await read_facts() if facts.name == "r0"]

    assert found.twins == ("r0-eu",)
    assert found.deployment is not None
    assert found.deployment["id"] == "d0"


async def test_a_try_behind_a_regular_run_is_still_to_come(prefect: Prefect) -> None:
    """It must not look cancelled only because a regular run of the schedule comes first."""
    prefect.run(0, "SCHEDULED", NOW + timedelta(minutes=15))
    prefect.runs[-1]["labels"] = {"key-rotation.try": 1}
    prefect.run(0, "SCHEDULED", NOW + timedelta(minutes=10))

    [found] = [facts for facts in await read_facts() if facts.name == "r0"]

    assert found.next_run is not None
    assert (found.next_run.at, found.next_run.is_try) == (NOW + timedelta(minutes=10), True)


async def test_a_failure_is_not_lost_behind_the_runs_of_others(prefect: Prefect) -> None:
    """A rotation's failure of a month ago is shown, however many runs the others have had since."""
    prefect.run(0, "FAILED", NOW - timedelta(days=30))
    for minute in range(2_000):
        prefect.run(1 + minute % (MANY - 1), "COMPLETED", NOW - timedelta(minutes=minute))

    assert await last("r0") == ("FAILED", "It is FAILED.")


async def test_a_failure_that_was_put_right_is_not_told(prefect: Prefect) -> None:
    """A failure is over once a later run has completed, even if that was long ago, too."""
    prefect.run(0, "FAILED", NOW - timedelta(days=30))
    prefect.run(0, "COMPLETED", NOW - timedelta(days=29))
    for minute in range(2_000):
        prefect.run(1 + minute % (MANY - 1), "COMPLETED", NOW - timedelta(minutes=minute))

    assert await last("r0") == ("COMPLETED", "It is COMPLETED.")


async def test_a_run_that_crashed_before_it_started_is_told(prefect: Prefect) -> None:
    """A run whose process could not start counts as the last one, though it has no start time."""
    prefect.run(0, "COMPLETED", NOW - timedelta(days=1))
    prefect.run(0, "CRASHED", NOW, started=False)

    assert await last("r0") == ("CRASHED", "It is CRASHED.")


async def test_a_run_that_waits_for_its_retry_is_due_when_the_retry_is(prefect: Prefect) -> None:
    """Given a Retry of yesterday's run, it is not late since yesterday: it keeps the start of its first attempt."""
    retried = prefect.runs[0]
    retried |= {"start_time": (NOW - timedelta(days=1)).isoformat(), "next_scheduled_start_time": NOW.isoformat()}

    [found] = [facts for facts in await read_facts() if facts.name == "r0"]

    assert found.next_run is not None
    assert found.next_run.at == NOW


async def test_the_destinations_of_a_rotation_are_those_of_all_its_deployments(prefect: Prefect) -> None:
    """Given a copy with an unchanged rotation name, its destinations count, too."""
    for name, place in (("r0", "secret/one"), ("r0-eu", "secret/other")):
        parameters = {"rotation": {"name": "r0", "destinations": [place]}}
        prefect.deployments.append({"id": name, "name": name, "tags": [], "parameters": parameters})

    assert await PrefectWorld().destinations_of("r0") == {"secret/one", "secret/other"}
