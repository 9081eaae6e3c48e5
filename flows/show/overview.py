"""All rotations on one page: which keys are alive, what comes next, and what needs a person."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from prefect import State
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import Artifact as StoredArtifact
from prefect.client.utilities import get_or_create_client
from prefect.logging import get_run_logger

from blocks.errors import KeyRotationError
from flows.show.rotation_page import artifact_key
from flows.show.settings import cell
from tasks.model.keys import show_time
from tasks.model.ledger import Ledger, Superseded
from tasks.model.schedules import SLUG
from tasks.world.api import api_errors
from tasks.world.gate import DEADLINE_SECONDS
from tasks.world.inventory import Facts, SeenRun, count_deployments, read_facts

OVERVIEW = "key-rotations"
"""The key of the artifact."""
LATE_AFTER = timedelta(minutes=5)
"""How long after its time something may still be waiting for a worker without being reported."""
ALWAYS_FRESH = 50
"""Up to how many rotations every run refreshes the overview; it takes about a quarter of a second for as many."""
SELDOM = timedelta(minutes=1)
"""How old the overview gets before a run refreshes it, where there are more rotations than that."""
A_WHILE = timedelta(days=180)
"""How far away a moment may be and still be told without its year."""
MAX_MESSAGE = 300
"""How much of a run's message is shown."""
HEADER = ("Rotation", "Health", "Current key", "Next run (UTC)", "Last result (UTC)", "Superseded keys")


class Health(IntEnum):
    """How a rotation is; the worst of what was found counts."""

    HEALTHY = 0
    DEGRADED = 1
    FAILED = 2


@dataclass(frozen=True)
class Row:
    """One rotation in the overview.

    Args:
        name: The rotation's name.
        health: How it is.
        current: The label of the current key, and how old it is.
        next_run: When it rotates next.
        last: How its last run ended.
        superseded: The superseded keys, and when each ends.
        needs: What needs a person, in sentences.
    """

    name: str
    health: Health
    current: str
    next_run: str
    last: str
    superseded: str
    needs: str

    def cells(self) -> tuple[str, ...]:
        """Spell the row, in the order of the header; what needs a person is too long for a cell."""
        return self.name, self.health.name.lower(), self.current, self.next_run, self.last, self.superseded


def row(facts: Facts, now: datetime) -> Row:
    """Judge one rotation.

    Args:
        facts: What is known about it.
        now: The current moment, UTC.

    Returns:
        Its row.
    """
    ledger = facts.ledger or Ledger()
    problems = _problems(facts, ledger, now)
    current = ledger.current
    return Row(
        name=facts.name,
        health=max((health for health, _ in problems), default=Health.HEALTHY),
        current=f"{current.label}, {_age(now - current.since)}" if current else "none",
        next_run=_next_run(facts, now),
        last="not known" if _is_unknown(facts, ledger) else _last(facts.last_run, now),
        superseded=", ".join(_superseded(key, facts, now) for key in ledger.superseded) or "none",
        needs=" ".join(sentence for _, sentence in problems),
    )


def _problems(facts: Facts, ledger: Ledger, now: datetime) -> list[tuple[Health, str]]:
    found: list[tuple[Health, str]] = []
    last = facts.last_run
    if facts.damage:
        found.append((Health.FAILED, facts.damage))
    if last is not None and last.state in {"FAILED", "CRASHED"}:
        said = f" It says: {last.message[:MAX_MESSAGE]}" if last.message else ""
        found.append((Health.FAILED, f"Look at its last run, which {last.state.lower()}; Retry there is safe.{said}"))
    elif ledger.pending and (last is None or last.state != "RUNNING"):
        found.append((Health.DEGRADED, "An interrupted rotation is pending: retry that run, or start a new one."))
    if _is_unknown(facts, ledger):
        found.append((Health.DEGRADED, "Its last result is not known: Prefect has no run of it any more."))
    if ledger.current is None and not facts.damage:
        found.append((Health.DEGRADED, "It has no key yet: run it."))
    if facts.deployment is None:
        found.append((Health.DEGRADED, f"There is no deployment rotate/{facts.name}, so nothing rotates it."))
    if facts.next_run is not None and facts.next_run.at < now - LATE_AFTER:
        found.append((Health.DEGRADED, f"Its run of {show_time(facts.next_run.at)} is late: is a worker running?"))
    return found + [(Health.DEGRADED, said) for key in ledger.superseded if (said := _overstays(key, facts, now))]


def _is_unknown(facts: Facts, ledger: Ledger) -> bool:
    # A key was made by a run.
    return facts.last_run is None and ledger.current is not None


def _overstays(key: Superseded, facts: Facts, now: datetime) -> str:
    if key.revoke_at in facts.cancelled:
        return f"{key.label} is kept alive until the next run of the rotation or of retire/retire."
    if key.revoke_at < now - LATE_AFTER:
        return f"{key.label} should have been revoked at {show_time(key.revoke_at)}: is a worker running?"
    return ""


def _superseded(key: Superseded, facts: Facts, now: datetime) -> str:
    if key.revoke_at in facts.cancelled:
        return f"{key.label} kept alive: its retirement was cancelled"
    what = "is looked at again" if key.postponed and not key.disabled else "ends"
    return f"{key.label} {what} {_short(key.revoke_at, now)}"


def _next_run(facts: Facts, now: datetime) -> str:
    if facts.next_run is not None:
        return _short(facts.next_run.at, now)
    if facts.deployment is None:
        return "none"
    own = next((each for each in facts.deployment["schedules"] if each["slug"] == SLUG), None)
    if facts.deployment["paused"] or own is None or not own["active"]:
        return "when somebody runs it"
    return "being scheduled"


def _last(run: SeenRun | None, now: datetime) -> str:
    if run is None:
        return "none yet"
    return f"{run.state.lower()} {_short(run.at, now)}"


def _short(at: datetime, now: datetime) -> str:
    # The header says the zone.
    return f"{at:%-d %b %H:%M}" if abs(at - now) < A_WHILE else f"{at:%-d %b %Y}"


def _age(age: timedelta) -> str:
    hours = int(age.total_seconds() // 3600)
    return f"{hours // 24} d" if hours >= 48 else f"{hours} h"  # noqa: PLR2004 - two days


def as_page(rows: Sequence[Row], now: datetime) -> str:
    """Show all rotations.

    Args:
        rows: The rotations.
        now: When the facts were read, UTC.

    Returns:
        Markdown for an artifact, without any secret.
    """
    rows = worst_first(rows)
    needs = [f"- **{each.name}** ({each.health.name.lower()}): {cell(each.needs)}" for each in rows if each.needs]
    table = [f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}"]
    table += [f"| {' | '.join(cell(text) for text in each.cells())} |" for each in rows]
    note = f"Each rotation's own artifact is `{artifact_key('<rotation>')}`."
    lines = ["# Key rotations", "", f"{summary(rows)} As of {show_time(now)}."]
    lines += ["", "## Needs a person", "", *(needs or ["Nothing."]), "", "## All rotations", "", *table, "", note]
    return "\n".join(lines)


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Put the rotations in trouble before the others.

    Args:
        rows: The rotations.

    Returns:
        The same rotations, by health and name.
    """
    return sorted(rows, key=lambda each: (-each.health, each.name))


def summary(rows: Sequence[Row]) -> str:
    """Count the rotations by their health.

    Args:
        rows: The rotations.

    Returns:
        One sentence.
    """
    counts = {health: sum(each.health is health for each in rows) for health in Health}
    parts = [f"{count} {health.name.lower()}" for health, count in counts.items() if count]
    return f"{len(rows)} rotation{'' if len(rows) == 1 else 's'}: {', '.join(parts) or 'none yet'}."


async def read_rows(now: datetime, ended: SeenRun | None = None, rotation: str = "") -> list[Row]:
    """Read and judge all rotations.

    Args:
        now: The current moment, UTC.
        ended: The run that asks, as it is about to end: Prefect still shows it as running.
        rotation: The rotation of that run.

    Returns:
        The rows, by name.

    Raises:
        ServiceError: Prefect's API failed.
    """
    all_facts = await read_facts()
    if ended is not None:
        all_facts = [_concluded(facts, ended) if facts.name == rotation else facts for facts in all_facts]
    return [row(facts, now) for facts in all_facts]


def _concluded(facts: Facts, ended: SeenRun) -> Facts:
    mine = facts.last_run is not None and facts.last_run.id == ended.id
    return replace(facts, last_run=ended) if mine else facts


async def refresh_overview(rotation: str, run_id: str, state: State[None], now: datetime) -> None:
    """Bring the artifact `key-rotations` up to date at the end of a rotation's run, unless it is young already.

    Args:
        rotation: The rotation that the run was about.
        run_id: The flow run.
        state: The state in which it is about to end.
        now: The current moment, UTC.
    """
    ended = SeenRun(run_id, state.type.value, state.message or "", now)
    await _refresh(now, ended, rotation, unless_fresh=True)


async def bring_up_to_date(now: datetime) -> None:
    """Bring the artifact `key-rotations` up to date, however young it is.

    Args:
        now: The current moment, UTC.
    """
    await _refresh(now, None, "", unless_fresh=False)


async def _refresh(now: datetime, ended: SeenRun | None, rotation: str, *, unless_fresh: bool) -> None:
    # Nothing in an overview may fail a run: a failure is a warning in its log and no more.
    try:
        if unless_fresh and await _is_fresh_enough(now):
            return
        rows = await read_rows(now, ended, rotation)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await show(rows, now)
    except KeyRotationError as error:
        get_run_logger().warning("The overview of all rotations was not refreshed: %s", error)
    except Exception as error:  # noqa: BLE001 - its text may quote anything
        get_run_logger().warning("The overview of all rotations was not refreshed (%s).", type(error).__name__)


async def _is_fresh_enough(now: datetime) -> bool:
    if await count_deployments() <= ALWAYS_FRESH:
        return False
    last = await _artifact()
    return last is not None and last.updated is not None and now - last.updated.astimezone(UTC) < SELDOM


async def _artifact() -> StoredArtifact | None:
    with api_errors("reading the overview"):
        return await Artifact.aget(OVERVIEW)


async def show(rows: Sequence[Row], now: datetime) -> str:
    """Write the artifact: always the same one, because each version would be kept for ever, and every run writes it.

    Args:
        rows: The rotations.
        now: When the facts were read, UTC.

    Returns:
        The artifact's id.

    Raises:
        ServiceError: Prefect's API failed.
    """
    page, last = as_page(rows, now), await _artifact()
    client, _ = get_or_create_client()
    # Not the client's own methods, which put the whole page into an event, too.
    with api_errors("writing the overview"):
        if last is None:
            body = {"key": OVERVIEW, "type": "markdown", "description": "All rotations, and what needs a person"}
            answer = await client.request("POST", "/artifacts/", json={**body, "data": page})
            return str(answer.json()["id"])
        await client.request("PATCH", "/artifacts/{id}", path_params={"id": last.id}, json={"data": page})
    return str(last.id)
