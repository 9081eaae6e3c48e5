"""The results of a fleet trial: what was lost, and what recovered by itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from prefect import get_client
from rich.console import Console
from rich.table import Table

from sandbox.consumers import read_key
from sandbox.fleet.consumers import Consumers
from sandbox.fleet.herd import Herd, HerdRuns
from sandbox.fleet.setup import Receiver
from sandbox.openrouter_account import OpenRouterSandbox
from tasks.model.events import Event
from tasks.world.ledgers import read_ledger

MOST_TRIES = 1
"""The maximum number of tries that a rotation may need."""
FIRED_WITHIN_SECONDS = 600.0
"""How long the last automations may take to fire: under load, Prefect's services fall behind."""
STORED_WITHIN_SECONDS = 30.0
"""How long the last events may take to reach the database, in seconds."""
PAGE = 50
SHOWN = 10
"""How many lines about losses are printed."""


@dataclass
class TrialResults:
    """The results of a trial."""

    herd: Herd
    calm: HerdRuns
    disturbed: HerdRuns
    consumers: Consumers
    account: OpenRouterSandbox
    fired: Counter[str]
    """How often the automation for a completed rotation fired, by the key's hash."""
    wrong: list[str] = field(default_factory=list)
    """Rotations whose ledger, destination and OpenRouter disagree about the current key."""
    orphans: set[str] = field(default_factory=set)
    current: dict[str, str] = field(default_factory=dict)
    """The rotation of each current key, by the key's hash."""
    stored: Counter[str] = field(default_factory=Counter)
    """The number of stored events, by name."""
    waited: float = 0.0
    """How long after the last retirement the last automation fired, in seconds."""
    started_again: Counter[str] = field(default_factory=Counter)

    @property
    def failed_runs(self) -> list[str]:
        """The final states of the scheduled runs that did not complete without a try."""
        outcomes = (self.calm, self.disturbed)
        states = [run.state_name for outcome in outcomes for run in outcome.own if run.state_name != "Completed"]
        return [str(name) for name in states]

    @property
    def needless_keys(self) -> int:
        """The number of keys created beyond one per scheduled run."""
        return len(self.account.created) - len(self.calm.run_ids) - len(self.disturbed.run_ids)

    @property
    def unretired(self) -> int:
        """The number of live keys beyond one per rotation."""
        return len(self.account.live_keys()) - len(self.herd.rotations)

    @property
    def not_fired(self) -> list[str]:
        """The rotations for whose current key no automation fired."""
        return [f"{name}: its automation did not fire" for key, name in self.current.items() if not self.fired[key]]

    @property
    def fired_again(self) -> int:
        """The number of repeated automations for the same key.

        Prefect acts before it records the action, so services that are killed in between act again.
        """
        return sum(times - 1 for times in self.fired.values() if times > 1)

    @property
    def events_lost(self) -> dict[str, int]:
        """The number of events missing in the database, by name."""
        due = len(self.calm.run_ids) + len(self.disturbed.run_ids)
        expected = {
            Event.KEY_CREATED: len(self.account.created),
            Event.ROTATION_COMPLETED: due,
            Event.KEY_REVOKED: len(self.account.deleted),
        }
        return {name: lost for name, many in expected.items() if (lost := many - self.stored[name]) > 0}


async def examine(
    herd: Herd,
    calm: HerdRuns,
    disturbed: HerdRuns,
    consumers: Consumers,
    account: OpenRouterSandbox,
    receiver: Receiver,
) -> TrialResults:
    """Compare the final state with the expected one; events and automations get time to arrive."""
    results, explained = TrialResults(herd, calm, disturbed, consumers, account, receiver.completed), set[str]()
    for rotation in herd.rotations:
        ledger = await read_ledger(rotation.name)
        explained |= ledger.hashes()
        held = account.by_secret.get(key := await read_key(rotation.destinations[0]))
        if ledger.current is None or held is None or not account.is_live(key) or ledger.current.hash != held.hash:
            results.wrong.append(f"{rotation.name}: ledger, destination and OpenRouter disagree")
        else:
            results.current[held.hash] = rotation.name
    results.orphans = {key.hash for key in account.live_keys()} - explained
    begun = time.monotonic()
    while results.not_fired and time.monotonic() - begun < FIRED_WITHIN_SECONDS:  # noqa: ASYNC110 - another thread counts
        await asyncio.sleep(1)
    results.waited = time.monotonic() - begun
    while True:
        results.stored = await _stored_events()
        if not results.events_lost or time.monotonic() - begun > results.waited + STORED_WITHIN_SECONDS:
            return results
        await asyncio.sleep(1)


async def _stored_events() -> Counter[str]:
    wanted = {
        "occurred": {"since": (datetime.now(UTC) - timedelta(days=1)).isoformat()},
        "event": {"prefix": ["key-rotation."]},
    }
    async with get_client() as client:
        answer = await client.request(
            "POST", "/events/count-by/{countable}", path_params={"countable": "event"}, json={"filter": wanted}
        )
    return Counter({entry["value"]: entry["count"] for entry in answer.json()})


def show(results: TrialResults, seconds: float, console: Console) -> bool:
    """Print the table, and return whether nothing was lost."""
    calm, disturbed, sent = results.calm, results.disturbed, sum(results.consumers.answers.values())
    most_tries = max(disturbed.tries.values(), default=0)
    failed = len(results.consumers.failed)
    by_themselves = results.started_again.total()
    due = f"{len(disturbed.run_ids)}"
    rows = [
        ("rotations finished, undisturbed", str(len(calm.finished)), due, calm.is_settled),
        ("rotations finished, with kills", str(len(disturbed.finished)), due, disturbed.is_settled),
        ("seconds, undisturbed and with kills", f"{calm.seconds:.0f}, {disturbed.seconds:.0f}", "", True),
        ("rotations a minute", f"{_rate(calm)}, {_rate(disturbed)}", "", True),
        ("runs that failed and healed by themselves", _counted(results.failed_runs), "", True),
        ("most tries of one rotation", str(most_tries), f"at most {MOST_TRIES}", most_tries <= MOST_TRIES),
        ("requests sent by consumers", str(sent), "more than 0", sent > 0),
        ("requests failed", str(failed), "0", failed == 0),
        ("keys live", str(len(results.account.live_keys())), due, results.unretired == 0),
        ("orphans", str(len(results.orphans)), "0", not results.orphans),
        ("rotations without one live key", str(len(results.wrong)), "0", not results.wrong),
        ("keys made more than once", str(results.needless_keys), "", True),
        ("retirements lost", str(results.unretired), "0", results.unretired == 0),
        ("automations that did not fire", str(len(results.not_fired)), "0", not results.not_fired),
        ("automations that fired twice", str(results.fired_again), "", True),
        ("seconds that the last automation came late", f"{results.waited:.0f}", "", True),
        ("events lost", str(sum(results.events_lost.values())), "", True),
        ("parts started again", str(by_themselves), "", True),
        ("seconds in all", f"{seconds:.0f}", "", True),
    ]
    lost = [f"events {name}: {number}" for name, number in results.events_lost.items()]
    lines = [*results.consumers.failed[:SHOWN], *results.wrong[:SHOWN], *results.not_fired[:SHOWN], *lost]
    return print_table("A fleet under faults", rows, lines, console)


def print_table(title: str, rows: Sequence[tuple[str, str, str, bool]], lines: Sequence[str], console: Console) -> bool:
    """Print a table of what was found, its aim, and whether that is met; return whether all of them are.

    Args:
        title: The title.
        rows: What, the number found, the aim if there is one, and whether it is met.
        lines: What is printed below.
        console: The console.
    """
    table = Table("what", "number", "aim", "met", title=title)
    for what, found, aim, met in rows:
        table.add_row(what, found, aim, ("[green]yes[/]" if met else "[red]no[/]") if aim else "")
    console.print(table)
    for line in lines:
        console.print(f"  {line}", highlight=False)
    return all(met for *_, met in rows)


def _rate(outcome: HerdRuns) -> str:
    return f"{60 * len(outcome.finished) / outcome.seconds:.0f}" if outcome.seconds else "0"


def _counted(names: list[str]) -> str:
    said = ", ".join(f"{number} {name}" for name, number in Counter(names).items())
    return f"{len(names)} ({said})" if names else "0"
