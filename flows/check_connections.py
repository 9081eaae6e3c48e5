"""Check every connection and destination in use, before a rotation depends on it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import State
from prefect.blocks.core import Block

from blocks.errors import ConfigurationError, DestinationError, KeyRotationError
from flows.forms import form_field
from flows.runs import conclude
from flows.show.artifacts import show_table
from flows.show.overview import refresh_overview
from tasks.model.management_keys import InUse
from tasks.model.rotation import BLOCK_PATTERN, parse_rotation
from tasks.model.times import show_time
from tasks.world.checks import check_block
from tasks.world.connections import block_of, connection_of
from tasks.world.inventory import read_deployments
from tasks.world.management_keys import forget_others, remember_use
from tasks.world.secrecy import secret_flow
from tasks.world.slots import slot_warnings
from tasks.world.stored_blocks import load_in_parts

ARTIFACT = "connections"
TIMEOUT_SECONDS = 60.0
"""Timeout of one check, including its retries."""
AT_ONCE = 10
"""How many checks run concurrently."""
ENDS_SOON = timedelta(days=14)
"""How long before a login expires a warning appears."""


@dataclass(frozen=True)
class Checked:
    """The outcome of one check.

    Args:
        name: `<block type slug>/<name>`, or the deployment of a rotation that cannot be read.
        used_by: The rotations that use it.
        works: Whether it works.
        why: What works, or what is wrong, in one sentence.
        seconds: Duration of the check.
        ends: When its login expires, UTC; `None` if unknown.
        place: The place that a destination points to; `None` if unknown.
        in_use: Since when a connection has used its management key.
    """

    name: str
    used_by: tuple[str, ...]
    works: bool
    why: str
    seconds: float = 0.0
    ends: datetime | None = None
    place: str | None = None
    in_use: InUse | None = None

    def cells(self) -> dict[str, Any]:
        """Return the row of the artifact."""
        return {
            "block": self.name,
            "used by": ", ".join(self.used_by),
            "works": "yes" if self.works else "no",
            "details": self.why,
            "seconds": round(self.seconds, 2),
            "login expires": show_time(self.ends) if self.ends else "unknown",
            "in use since": show_time(self.in_use.since) if self.in_use else "",
        }


@secret_flow("check-connections")
async def check_connections(
    block: Annotated[str, form_field("Block", pattern=f"^$|{BLOCK_PATTERN}")] = "",
) -> State[None]:
    """Check every connection and destination that a rotation uses, or one block, and report what does not work.

    No key and no secret is changed. The overview of all rotations is refreshed, unless only one block is checked.

    Args:
        block: The block to check alone, such as vault-secret/my-app. Empty checks every one that a rotation uses.

    Returns:
        The final state: Failed if something does not work; its message has one sentence for each.
    """
    async with conclude() as conclusion:
        if block:
            conclusion.succeeded(await _check_alone(block))
            return conclusion.state
        used, unreadable = blocks_in_use(deployments := await read_deployments())
        checked = fail_shared_places(await _all_checked(used))
        checked += unreadable
        await forget_others(named_connections(deployments))
        table = [each.cells() for each in sorted(checked, key=lambda each: (each.works, each.name))]
        await show_table(ARTIFACT, table, "Status of all connections and destinations in use")
        now = datetime.now(UTC)
        await refresh_overview(now)
        conclusion.succeeded(verdict(checked, now, await slot_warnings()))
    return conclusion.state


async def _check_alone(name: object) -> str:
    """Check one block, which need not be in use, and return what works."""
    if not isinstance(name, str) or not re.fullmatch(BLOCK_PATTERN, name):
        raise ConfigurationError("block: must be <block type slug>/<block name>, such as vault-secret/my-app.")
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            outcome = await check_block(name, "block")
    except TimeoutError:
        raise DestinationError(f"block: {name} gave no answer within {TIMEOUT_SECONDS:.0f} seconds.") from None
    in_use = await remember_use(outcome.in_use) if outcome.in_use else None
    ends = f"Its login expires at {show_time(outcome.ends)}." if outcome.ends else ""
    warning = in_use.warning(datetime.now(UTC)) if in_use else ""
    return " ".join(filter(None, [f"{name} works: {outcome.sentence}", ends, warning]))


def blocks_in_use(deployments: list[dict[str, Any]]) -> tuple[dict[str, tuple[str, ...]], list[Checked]]:
    """Return the blocks in use, each with its rotations, and the deployments whose rotation is invalid."""
    used: dict[str, tuple[str, ...]] = {}
    unreadable = []
    for deployment in deployments:
        try:
            rotation = parse_rotation(deployment["parameters"].get("rotation"))
        except ConfigurationError as error:
            name = f"rotate/{deployment['name']}"
            unreadable.append(Checked(name, (deployment["name"],), works=False, why=str(error)))
            continue
        for name in (block_of(rotation.connection), *rotation.destinations):
            # A copied deployment contains the same rotation again.
            used[name] = tuple(dict.fromkeys((*used.get(name, ()), rotation.name)))
    return used, unreadable


def named_connections(deployments: list[dict[str, Any]]) -> set[str]:
    """Return the connections that deployments name, including deployments whose rotation is invalid."""
    rotations = [deployment["parameters"].get("rotation") for deployment in deployments]
    return {str(each["connection"]) for each in rotations if isinstance(each, Mapping) and "connection" in each}


async def _all_checked(used: Mapping[str, tuple[str, ...]]) -> list[Checked]:
    at_once, checked = asyncio.Semaphore(AT_ONCE), list[Checked]()
    async for some, loaded in load_in_parts(list(used)):
        checked += await asyncio.gather(*(_checked(name, used[name], loaded, at_once) for name in some))
    return checked


async def _checked(
    name: str, used_by: tuple[str, ...], loaded: Mapping[str, Block], at_once: asyncio.Semaphore
) -> Checked:
    async with at_once:
        begun = time.monotonic()
        outcome = None
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                kind = "connection" if connection_of(name) else "destination"
                outcome = await check_block(name, kind, loaded)
        except KeyRotationError as error:
            why = str(error)
        except TimeoutError:
            why = f"No answer within {TIMEOUT_SECONDS:.0f} seconds."
        seconds = time.monotonic() - begun
        if outcome is None:
            return Checked(name, used_by, works=False, why=why, seconds=seconds)
        why, in_use = outcome.sentence, outcome.in_use
        try:
            in_use = await remember_use(in_use) if in_use else None
        except KeyRotationError as error:
            # The block works; only the age of its management key may be unknown.
            why = f"{why} {error}"
        return Checked(name, used_by, True, why, seconds, outcome.ends, outcome.place, in_use)


def fail_shared_places(checked: list[Checked]) -> list[Checked]:
    """Mark each destination as not working whose place another rotation or block uses too."""
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
    same = f"Points to the same place as {' and '.join(one.name for one in others)}: {each.place}." if others else ""
    return replace(each, works=False, why=f"{same} {why}".strip())


def verdict(checked: list[Checked], now: datetime, warnings: Sequence[str] = ()) -> str:
    """Return the final message, with a warning for each login that expires soon.

    Args:
        checked: The outcomes of the checks.
        now: The current time, UTC.
        warnings: Further warnings.

    Raises:
        DestinationError: Something does not work.
    """
    soon = [each for each in checked if each.ends and each.ends - now < ENDS_SOON and each.in_use is None]
    said = [f"The login of {each.name} expires at {show_time(each.ends)}." for each in soon if each.ends]
    said += [warning for each in checked if each.in_use and (warning := each.in_use.warning(now))]
    said += warnings
    broken = [each for each in checked if not each.works]
    if broken:
        details = [f"{each.name} (used by {', '.join(each.used_by)}): {each.why}" for each in broken]
        count = f"{len(broken)} of {len(checked)} connections and destinations do not work."
        raise DestinationError(" ".join([count, *details, *said]))
    return " ".join([f"All {len(checked)} connections and destinations work.", *said])
