"""The overview of all rotations: their keys, next runs and required actions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from textwrap import shorten
from typing import NamedTuple

from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from blocks.errors import NOTHING_DONE, ConfigurationError, KeyRotationError
from flows.show.links import artifact_url, linked, page_url
from flows.show.rotation_page import artifact_key, how_it_ends
from flows.show.settings import cell
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded
from tasks.model.rotation import parse_rotation
from tasks.model.schedules import SLUG
from tasks.model.times import show_time
from tasks.model.tries import TRIES_AGAIN
from tasks.world.api import api_errors
from tasks.world.gate import DEADLINE_SECONDS
from tasks.world.inventory import Facts, SeenRun, read_facts
from tasks.world.ledgers import prune_ledgers
from tasks.world.management_keys import all_in_use

OVERVIEW = "key-rotations"
"""The artifact's key."""
LATE_AFTER = timedelta(minutes=5)
"""How late a run or a revocation may be before it is reported."""
YEAR_SHOWN_BEYOND = timedelta(days=180)
"""Dates further away than this are shown with the year instead of the time."""
CROWD = 20
"""How many rotations may be due in the same minute before a spread is suggested."""
MAX_MESSAGE = 600
"""How many characters of a run's message are shown; enough for the usual ones, with the link to their help."""
CHECK_WORKER = "check that a worker is running and that its work pool is not paused."
HEADER = ("Rotation", "Health", "Current key", "Next run (UTC)", "Last result (UTC)", "Superseded keys")


class Health(IntEnum):
    """The health of a rotation: that of its worst problem."""

    HEALTHY = 0
    DEGRADED = 1
    FAILED = 2


class Urls(NamedTuple):
    """The dashboard's pages for a rotation; a text is empty if the page does not exist or its address is unknown.

    Args:
        page: The rotation's artifact.
        deployment: Its deployment.
        next_run: Its next run.
        last_run: Its last run.
    """

    page: str
    deployment: str
    next_run: str
    last_run: str


@dataclass(frozen=True)
class Row:
    """One rotation in the overview.

    Args:
        name: The rotation's name.
        health: Its health.
        current: Label and age of the current key.
        next_run: When it rotates next.
        last: State and time of its last run.
        superseded: The superseded keys, each with its end.
        needs: The required actions, in sentences.
        urls: Where the dashboard shows it.
        facts: What Prefect knows about it.
    """

    name: str
    health: Health
    current: str
    next_run: str
    last: str
    superseded: str
    needs: str
    urls: Urls
    facts: Facts

    def cells(self) -> tuple[str, ...]:
        """Return the row in the order of `HEADER`; the required actions are too long for a cell."""
        return self.name, self.health.name.lower(), self.current, self.next_run, self.last, self.superseded

    def linked_cells(self) -> tuple[str, ...]:
        """Return the same in Markdown, with links to the dashboard."""
        name, health, current, next_run, last, superseded = map(cell, self.cells())
        deployment = f" ({linked('deployment', self.urls.deployment)})" if self.urls.deployment else ""
        return (
            f"{linked(name, self.urls.page)}{deployment}",
            health,
            current,
            linked(next_run, self.urls.next_run),
            linked(last, self.urls.last_run),
            superseded,
        )


def row(facts: Facts, now: datetime) -> Row:
    """Assess one rotation."""
    ledger = facts.ledger or Ledger()
    problems = _problems(facts, ledger, now)
    current = ledger.current
    return Row(
        name=facts.name,
        health=max((health for health, _ in problems), default=Health.HEALTHY),
        current=f"{current.label}, {_age(now - current.since)}" if current else "none",
        next_run=_next_run(facts, now),
        last="unknown" if _is_unknown(facts, ledger) else _last(facts.last_run, now),
        superseded=", ".join(_superseded(key, facts, now) for key in ledger.superseded) or "none",
        needs=" ".join(sentence for _, sentence in problems),
        urls=_urls(facts),
        facts=facts,
    )


def _urls(facts: Facts) -> Urls:
    return Urls(
        page=artifact_url(artifact_key(facts.name)),
        deployment=page_url("deployment", facts.deployment["id"]) if facts.deployment else "",
        next_run=page_url("flow-run", facts.next_run.id) if facts.next_run else "",
        last_run=page_url("flow-run", facts.last_run.id) if facts.last_run else "",
    )


def _problems(facts: Facts, ledger: Ledger, now: datetime) -> list[tuple[Health, str]]:
    found: list[tuple[Health, str]] = []
    last = facts.last_run
    if facts.damage:
        found.append((Health.FAILED, facts.damage))
    if last is not None and last.state in {"FAILED", "CRASHED", TRIES_AGAIN}:
        found.append(_failure(last, facts.next_run))
    elif ledger.pending and (last is None or last.state != "RUNNING"):
        found.append((Health.DEGRADED, "An interrupted rotation is pending: retry its run, or start a new one."))
    if _is_unknown(facts, ledger):
        found.append((Health.DEGRADED, "The last result is unknown: Prefect no longer stores a run of this rotation."))
    found += _what_is_missing(facts, ledger)
    if refusal := _refusal(facts):
        found.append((Health.FAILED, f"No run will rotate the key: {refusal}"))
    if facts.twins:
        others = ", ".join(f"rotate/{twin}" for twin in facts.twins)
        found.append((Health.DEGRADED, f"{others} also rotates {facts.name}: give it a rotation.name of its own."))
    if _has_no_pool(facts):
        needed = "Deploy prefect.yaml again, then submit add-rotation again."
        found.append((Health.FAILED, f"No run will start: its work pool was deleted. {needed}"))
    elif facts.next_run is not None and facts.next_run.at < now - LATE_AFTER:
        found.append((Health.DEGRADED, f"The run of {show_time(facts.next_run.at)} is late: {CHECK_WORKER}"))
    return found + [(Health.DEGRADED, said) for key in ledger.superseded if (said := _overstays(key, facts, now))]


def _what_is_missing(facts: Facts, ledger: Ledger) -> list[tuple[Health, str]]:
    if ledger.removed and facts.deployment is None:
        # Its remaining keys are revoked without anybody's help.
        return []
    missing = []
    if ledger.current is None and not facts.damage:
        missing.append((Health.DEGRADED, "No key yet: run the rotation."))
    if facts.deployment is None:
        missing.append(
            (Health.DEGRADED, f"The deployment rotate/{facts.name} does not exist, so the key is not rotated.")
        )
    return missing


def _has_no_pool(facts: Facts) -> bool:
    # A deployment that a process of its own serves has no pool either, and that process keeps it ready.
    deployment = facts.deployment
    return deployment is not None and not deployment["work_pool_name"] and deployment["status"] != "READY"


def _refusal(facts: Facts) -> str:
    """Return why every run refuses the deployment's parameters; empty if they are valid."""
    if facts.deployment is None:
        return ""
    try:
        parse_rotation(facts.deployment["parameters"].get("rotation"))
    except ConfigurationError as error:
        return str(error).removesuffix(NOTHING_DONE[0]).rstrip()
    return ""


def _failure(last: SeenRun, next_run: SeenRun | None) -> tuple[Health, str]:
    """Return how a run has failed; a crashed one says nothing of the try that follows it, unlike `TRIES_AGAIN`."""
    message = f" Message: {shorten(last.message, MAX_MESSAGE, placeholder=' …')}" if last.message else ""
    what = "crashed" if last.state == "CRASHED" else "failed"
    if last.state in {TRIES_AGAIN, "CRASHED"} and next_run is not None and next_run.is_try:
        return Health.DEGRADED, f"The last run {what}, and is tried again automatically.{message}"
    why = ", and the next try was cancelled or deleted" if last.state == TRIES_AGAIN else ""
    return Health.FAILED, f"The last run {what}{why}: open that run and press Retry, which is safe.{message}"


def _is_unknown(facts: Facts, ledger: Ledger) -> bool:
    # A current key proves that a run existed.
    return facts.last_run is None and ledger.current is not None


def _overstays(key: Superseded, facts: Facts, now: datetime) -> str:
    if key.revoke_at in facts.cancelled:
        return (
            f"{key.label} stays valid until the next run of the rotation or of retire/retire: its retirement was "
            "cancelled."
        )
    if key.revoke_at < now - LATE_AFTER:
        return f"{key.label} was due for revocation at {show_time(key.revoke_at)}: {CHECK_WORKER}"
    return ""


def _superseded(key: Superseded, facts: Facts, now: datetime) -> str:
    if key.revoke_at in facts.cancelled:
        return f"{key.label} kept: retirement cancelled"
    return f"{key.label} {how_it_ends(key)} {_short(key.revoke_at, now)}"


def _next_run(facts: Facts, now: datetime) -> str:
    if facts.next_run is not None:
        return _short(facts.next_run.at, now)
    if facts.deployment is None:
        return "none"
    own = next((each for each in facts.deployment["schedules"] if each["slug"] == SLUG), None)
    if facts.deployment["paused"] or own is None or not own["active"]:
        return "manual only"
    return "not scheduled yet"


def _last(run: SeenRun | None, now: datetime) -> str:
    if run is None:
        return "none yet"
    return f"{'failed' if run.state == TRIES_AGAIN else run.state.lower()} {_short(run.at, now)}"


def _short(at: datetime, now: datetime) -> str:
    # The table's header names the time zone.
    return f"{at:%-d %b %H:%M}" if abs(at - now) < YEAR_SHOWN_BEYOND else f"{at:%-d %b %Y}"


def _age(age: timedelta) -> str:
    hours = int(age.total_seconds() // 3600)
    if hours < 1:
        # The age is negative if the clocks of two hosts differ.
        return "below 1 h"
    return f"{hours // 24} d" if hours >= 48 else f"{hours} h"  # noqa: PLR2004 - two days


def as_page(rows: Sequence[Row], now: datetime, warnings: Sequence[str] = ()) -> str:
    """Return the artifact's Markdown, with warnings about the connections after the required actions."""
    rows = worst_first(rows)
    needs = [
        f"- **{linked(each.name, each.urls.page)}** ({each.health.name.lower()}): {cell(each.needs)}"
        + (f" {linked('Last run', each.urls.last_run)}" if each.urls.last_run else "")
        for each in rows
        if each.needs
    ]
    needs += [f"- {cell(warning)}" for warning in [*warnings, *crowded(rows)]]
    table = [f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}"]
    table += [f"| {' | '.join(each.linked_cells())} |" for each in rows]
    note = f"Details of a rotation: artifact `{artifact_key('<rotation>')}`."
    lines = ["# Key rotations", "", f"{summary(rows)} As of {show_time(now)}."]
    lines += ["", "## Action required", "", *(needs or ["None."]), "", "## All rotations", "", *table, "", note]
    return "\n".join(lines)


def crowded(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each minute at which more than `CROWD` rotations are due."""
    due = Counter(show_time(each.facts.next_run.at) for each in rows if each.facts.next_run)
    return [
        f"{count} rotations are due at {at}: give them a Spread in the form of add-rotation, such as 2h."
        for at, count in sorted(due.items())
        if count > CROWD
    ]


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Sort by health, the worst first, then by name."""
    return sorted(rows, key=lambda each: (-each.health, each.name))


def summary(rows: Sequence[Row]) -> str:
    """Return the number of rotations by health, in one sentence."""
    counts = {health: sum(each.health is health for each in rows) for health in Health}
    parts = [f"{count} {health.name.lower()}" for health, count in counts.items() if count]
    return f"{len(rows)} rotation{'' if len(rows) == 1 else 's'}: {', '.join(parts) or 'none yet'}."


async def read_rows(now: datetime) -> list[Row]:
    """Read and assess all rotations.

    Args:
        now: The current time, UTC.

    Raises:
        ServiceError: Prefect's API failed.
    """
    return [row(facts, now) for facts in await read_facts()]


async def refresh_overview(now: datetime) -> None:
    """Refresh the artifact `key-rotations` and delete outdated ledger terms, from a run of another flow.

    It never fails that run.
    """
    try:
        rows = await read_rows(now)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await show(rows, now)
        # If the flow `overview` is not deployed, nothing else deletes them.
        await prune_ledgers()
    except KeyRotationError as error:
        get_run_logger().warning("The overview of all rotations was not refreshed: %s", error)
    except Exception as error:  # noqa: BLE001 - a foreign error's text may quote anything, so only its class is logged
        get_run_logger().warning("The overview of all rotations was not refreshed (%s).", type(error).__name__)


async def show(rows: Sequence[Row], now: datetime) -> None:
    """Create a new version of the artifact, and delete the earlier ones, which Prefect would keep forever.

    After an update in place, the page would still show the time of its first creation.

    Raises:
        ServiceError: Prefect's API failed.
    """
    warnings = [warning for each in await all_in_use() if (warning := each.warning(now))]
    page = as_page(rows, now, warnings)
    client, _ = get_or_create_client()
    body = {"key": OVERVIEW, "type": "markdown", "description": "All rotations and required actions", "data": page}
    with api_errors("writing the overview"):
        # The client's own methods would also emit an event with the whole page.
        await client.request("POST", "/artifacts/", json=body)
        # All but the newest, whoever has created it meanwhile.
        versions = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[OVERVIEW])), sort=ArtifactSort.CREATED_DESC
        )
        for earlier in versions[1:]:
            with suppress(ObjectNotFound):
                await client.delete_artifact(earlier.id)
