"""Check every connection and destination in use, before a rotation finds out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import State

from blocks.errors import ConfigurationError, DestinationError, KeyRotationError
from flows.runs import conclude
from flows.show.artifacts import show_table
from flows.show.overview import bring_up_to_date
from tasks.model.keys import show_time
from tasks.model.rotation import parse_rotation
from tasks.world.checks import Outcome, check_connection, check_destination
from tasks.world.connections import CONNECTION_TYPE
from tasks.world.inventory import read_deployments
from tasks.world.secrecy import secret_flow

ARTIFACT = "connections"
TIMEOUT_SECONDS = 60.0
"""How long one check may take, all its attempts included."""
AT_ONCE = 10
"""How many checks run side by side."""
ENDS_SOON = timedelta(days=14)
"""How long before its end a login is told of."""


@dataclass(frozen=True)
class Checked:
    """The outcome of one check.

    Args:
        name: The block's type slug and name, or a rotation that cannot be read.
        used_by: The rotations that use it.
        works: Whether it works.
        why: One sentence that says what works, or what is wrong.
        seconds: How long the check took.
        ends: When its login ends, UTC; `None` where that is not known.
        place: The place that a destination means; `None` where that is not known.
    """

    name: str
    used_by: tuple[str, ...]
    works: bool
    why: str
    seconds: float = 0.0
    ends: datetime | None = None
    place: str | None = None

    def cells(self) -> dict[str, Any]:
        """Spell the outcome for a table."""
        return {
            "block": self.name,
            "used by": ", ".join(self.used_by),
            "works": "yes" if self.works else "no",
            "why": self.why,
            "seconds": round(self.seconds, 2),
            "login ends": show_time(self.ends) if self.ends else "not known",
        }


@secret_flow("check-connections")
async def check_connections() -> State[None]:
    """Check every connection and destination that a rotation uses, and show which ones do not work.

    Nothing is changed. The overview of all rotations is brought up to date, too.

    Returns:
        The final state: failed, with one sentence for each, where something does not work.
    """
    async with conclude() as conclusion:
        used, unreadable = in_use(await read_deployments())
        at_once = asyncio.Semaphore(AT_ONCE)
        checked = apart(await asyncio.gather(*(_checked(name, by, at_once) for name, by in used.items())))
        checked += unreadable
        table = [each.cells() for each in sorted(checked, key=lambda each: (each.works, each.name))]
        await show_table(ARTIFACT, table, "Connections and destinations in use, and whether they work")
        now = datetime.now(UTC)
        await bring_up_to_date(now)
        conclusion.succeeded(verdict(checked, now))
    return conclusion.state


def in_use(deployments: list[dict[str, Any]]) -> tuple[dict[str, tuple[str, ...]], list[Checked]]:
    """Say which blocks the rotations use.

    Args:
        deployments: The deployments of all rotations, as the API shows them.

    Returns:
        Each block with the rotations that use it, and the deployments whose rotation cannot be read.
    """
    used: dict[str, tuple[str, ...]] = {}
    unreadable = []
    for deployment in deployments:
        try:
            rotation = parse_rotation(deployment["parameters"].get("rotation"))
        except ConfigurationError as error:
            name = f"rotate/{deployment['name']}"
            unreadable.append(Checked(name, (deployment["name"],), works=False, why=str(error)))
            continue
        for name in (f"{CONNECTION_TYPE}/{rotation.connection}", *rotation.destinations):
            used[name] = (*used.get(name, ()), rotation.name)
    return used, unreadable


async def _checked(name: str, used_by: tuple[str, ...], at_once: asyncio.Semaphore) -> Checked:
    async with at_once:
        begun = time.monotonic()
        outcome = None
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                outcome = await _check(name)
        except KeyRotationError as error:
            why = str(error)
        except TimeoutError:
            why = f"There was no answer within {TIMEOUT_SECONDS:.0f} seconds."
        seconds = time.monotonic() - begun
        if outcome is None:
            return Checked(name, used_by, works=False, why=why, seconds=seconds)
        return Checked(name, used_by, True, outcome.sentence, seconds, outcome.ends, outcome.place)


async def _check(name: str) -> Outcome:
    kind, _, block = name.partition("/")
    if kind == CONNECTION_TYPE:
        return await check_connection(block, "connection")
    return await check_destination(name, "destination")


def apart(checked: list[Checked]) -> list[Checked]:
    """Find the destinations that are one and the same place.

    Args:
        checked: The outcomes.

    Returns:
        The outcomes; what means a place that another rotation, or another block, publishes to as well does not work.
    """
    sharing: dict[str | None, list[Checked]] = {}
    for each in checked:
        sharing.setdefault(each.place, []).append(each)
    return [
        each if each.place is None else _judged(each, [other for other in sharing[each.place] if other is not each])
        for each in checked
    ]


def _judged(each: Checked, others: list[Checked]) -> Checked:
    if not others and len(each.used_by) == 1:
        return each
    rotations = sorted({name for one in (each, *others) for name in one.used_by})
    why = f"The rotations {' and '.join(rotations)} overwrite each other's key there." if len(rotations) > 1 else ""
    same = f"It is the same place as {' and '.join(other.name for other in others)}: {each.place}." if others else ""
    return replace(each, works=False, why=f"{same} {why}".strip())


def verdict(checked: list[Checked], now: datetime) -> str:
    """Sum the checks up.

    Args:
        checked: The outcomes.
        now: The current moment, UTC.

    Returns:
        One sentence, and one more for each login that ends soon.

    Raises:
        DestinationError: Something does not work.
    """
    broken = [each for each in checked if not each.works]
    if broken:
        told = " ".join(f"{each.name} (used by {', '.join(each.used_by)}): {each.why}" for each in broken)
        raise DestinationError(f"{len(broken)} of {len(checked)} do not work. {told}")
    soon = [each for each in checked if each.ends and each.ends - now < ENDS_SOON]
    told = "".join(f" The login of {each.name} ends at {show_time(each.ends)}." for each in soon if each.ends)
    return f"All {len(checked)} connections and destinations work.{told}"
