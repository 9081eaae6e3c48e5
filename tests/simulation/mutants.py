"""Wrong versions of the protocol, planted one at a time: the simulation must catch every one of them.

`make mutants` prints the table. A simulation that cannot fail proves nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from unittest import mock
from uuid import UUID

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from rich.console import Console
from rich.table import Table

import tasks.create
import tasks.lost
import tasks.publish
import tasks.recover
import tasks.repair
import tasks.revoke
import tasks.terms
from blocks.errors import ServiceError
from blocks.openrouter import ApiKey
from flows.steps import PLAIN
from tasks.audit import KeyFilter
from tasks.decisions import Finding, Judgement, Verdict, find
from tasks.ledger import Current, Ledger, OpenLedger, Superseded
from tasks.rotation import Rotation
from tasks.run import NewKey, Run, VerifiedKey
from tasks.terms import request_of
from tests.simulation import model
from tests.simulation.machine import COUNTED, Histories, histories_of
from tests.simulation.promises import BrokenPromiseError

MAX_HISTORIES = 3_000
ROTATE = importlib.import_module("flows.rotate")  # the package exports the flow under the same name
RESTORE = importlib.import_module("flows.restore_key")
STEPS = 30


async def nothing(*_args: Any, **_how: Any) -> None:
    """Do nothing where something should be done."""


@dataclass(frozen=True)
class Mutant:
    """A wrong version: what is wrong with it, and what is put in place of what.

    One that needs several steps in a certain order is hunted `among` histories of only some of the machine's rules,
    `begun_with` a rotation that is filled in for it.
    """

    wrong: str
    target: Any
    name: str
    instead: Any
    among: tuple[str, ...] = ()
    begun_with: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant it."""
        with mock.patch.object(self.target, self.name, self.instead):
            yield

    def undone(self) -> Mutant:
        """Put the right version back, to see that it keeps the promise which this one broke."""
        return replace(self, instead=getattr(self.target, self.name))


async def _create_then_announce(run: Run, rotation: Any) -> Any:
    now = run.world.now()
    request = rotation.key.terms(now).request(rotation.key_name(run.identity.id, now))
    created = await (await run.world.connection(rotation.connection)).create_key(request)
    await tasks.create._announce(run, rotation, now)
    return created


async def _create_again(run: Run, rotation: Any) -> Any:
    now = run.world.now()
    openrouter = await run.world.connection(rotation.connection)
    request = request_of(await tasks.create._announce(run, rotation, now), rotation.key_name(run.identity.id, now))
    try:
        return await openrouter.create_key(request)
    except ServiceError:
        return await openrouter.create_key(request)


def _all_are_ours(keys: KeyFilter, _known: Collection[UUID]) -> None:
    keys.ours |= {key.hash: key for key in keys.undecided}
    keys.undecided.clear()


async def _current_unseen(run: Run, rotation: Rotation, key: ApiKey, now: datetime) -> Current:
    return Current(
        hash=key.hash,
        label=key.label,
        fingerprint="",
        connection=rotation.connection,
        since=now,
        destinations=tuple(rotation.destinations),
    )


def _finding(wrong: Finding, *instead_of: Finding) -> Callable[..., Finding]:
    def found(*args: Any) -> Finding:
        right = find(*args)
        return wrong if right in instead_of else right

    return found


def _forget_earlier(self: Ledger, *args: Any) -> Ledger:
    right = _published(self, *args)
    return right.model_copy(update={"superseded": right.superseded[-1:]})


_published = Ledger.published


async def _believe_anything(_run: Run, _rotation: Any, key: NewKey) -> VerifiedKey:
    return VerifiedKey(key.secret, key.record)


async def _revoke_before_publishing(run: Run, rotation: Any, key: VerifiedKey, steps: Any) -> None:
    current = run.ledger.ledger.current
    if current is not None:
        await (await run.world.connection(current.connection)).delete_key(current.hash)
    await _publish_everywhere(run, rotation, key, steps)


_publish_everywhere = ROTATE.publish_everywhere


async def _publish_to_the_first(run: Run, rotation: Any, key: VerifiedKey, steps: Any) -> None:
    await steps.publish(run, key, rotation.destinations[0])


async def _delete_without_ledger(run: Run, key: Superseded, _destinations: Any) -> None:
    await (await run.world.connection(key.connection)).delete_key(key.hash)


def _leaky_fingerprint(secret: Any) -> str | None:
    return None if secret is None else str(secret.get_secret_value())


def _overwrite(self: model.ModelDestination, value: str | None, _held: Any) -> None:
    self._place.versions.append(value)


async def _believe_the_first_look(run: Run, **_how: Any) -> None:
    if run.ledger.ledger.pending and run.ledger.ledger.pending.key is None:
        await run.ledger.save(run.ledger.ledger.dropped())


async def _delete_at_once(run: Run, openrouter: Any, key: Superseded) -> None:
    await openrouter.delete_key(key.hash)
    await run.ledger.save(run.ledger.ledger.revoked(key.hash))


def _still_removed(self: Ledger, pending: Any) -> Ledger:
    return self.model_copy(update={"pending": pending})


MUTANTS = [
    Mutant("the intent is written after the create", tasks.create, "_create_or_settle", _create_then_announce),
    Mutant("the create is retried blindly", tasks.create, "_create_or_settle", _create_again),
    Mutant("a lost create is never looked for", tasks.recover, "settle_intent", _believe_the_first_look),
    Mutant("a create that may still turn up is forgotten", Ledger, "left_unresolved", Ledger.dropped),
    Mutant(
        "the new key is published before it works", Histories, "steps", PLAIN._replace(verify_key=_believe_anything)
    ),
    Mutant("the write to a destination is not read back", tasks.publish, "_read_back", nothing, ("rotate", "retry")),
    Mutant(
        "the old key is revoked before the new one is published",
        ROTATE,
        "publish_everywhere",
        _revoke_before_publishing,
    ),
    Mutant("one destination is enough", ROTATE, "publish_everywhere", _publish_to_the_first),
    Mutant("the ledger is not read again before a write", OpenLedger, "guard", nothing),
    Mutant("check-and-set is dropped", model.ModelDestination, "_write", _overwrite),
    Mutant(
        "an abandoned key is deleted without a fence",
        model.ModelDestination,
        "fence",
        nothing,
        ("rotate", "retry", "late_effects_happen"),
    ),
    Mutant("the superseded key's hash is overwritten", Ledger, "published", _forget_earlier),
    Mutant(
        "a Retry makes a second key", tasks.recover, "find", _finding(Finding.NOTHING_PENDING, Finding.ALREADY_ROTATED)
    ),
    Mutant(
        "a half-published key is thrown away",
        tasks.recover,
        "find",
        _finding(Finding.NOTHING_PENDING, Finding.KEY_PUBLISHED),
    ),
    Mutant(
        "an unpublished key is left behind",
        tasks.recover,
        "find",
        _finding(Finding.NOTHING_PENDING, Finding.KEY_UNPUBLISHED),
    ),
    Mutant(
        "a key that a destination holds is revoked",
        tasks.revoke,
        "needed_by",
        lambda *_: [],
        ("rotate", "put_a_former_key_back", "the_clock_jumps", "retire"),
    ),
    Mutant("a revoked key stays in the ledger", Ledger, "revoked", lambda self, _hash: self),
    Mutant('"no such key" is always believed', tasks.revoke, "make_sure_that_it_is_gone", nothing),
    Mutant(
        "keys are not found again after the ledger is lost",
        tasks.recover,
        "keys_without_ledger",
        mock.AsyncMock(return_value=[]),
    ),
    Mutant(
        "keys of another Prefect server are taken up", model.ModelWorld, "knows_run", mock.AsyncMock(return_value=True)
    ),
    Mutant("an emergency leaves older keys alive", Ledger, "hastened", lambda self, _now: self),
    Mutant("the overlap is ignored", Ledger, "due", lambda self, _now: list(self.superseded)),
    Mutant(
        "a revocation leaves no trace in the ledger",
        Histories,
        "steps",
        PLAIN._replace(revoke_key=_delete_without_ledger),
    ),
    Mutant("a key is published without its guardrail", tasks.create, "_guard", nothing),
    Mutant("a carried budget starts afresh", tasks.terms, "carried_over", lambda *_: None, ("rotate", "spend")),
    Mutant(
        "the former key of a carried budget may go on spending", ROTATE, "settle_budget", nothing, ("rotate", "spend")
    ),
    Mutant("a key is revoked although it is used", tasks.revoke, "judge", lambda *_: Judgement(Verdict.REVOKE)),
    Mutant(
        "a key is deleted that was to be disabled first",
        tasks.revoke,
        "_disable",
        _delete_at_once,
        ("rotate", "retire"),
    ),
    Mutant(
        "a restored key is published before it is enabled",
        RESTORE,
        "enable",
        nothing,
        ("rotate", "restore"),
    ),
    Mutant(
        "a rotation that is back counts as removed",
        Ledger,
        "intended",
        _still_removed,
        ("rotate", "remove", "retire"),
    ),
    Mutant("every marked key is called an orphan", KeyFilter, "decide", _all_are_ours),
    Mutant(
        "a lost ledger is written without its destinations",
        tasks.repair,
        "_current",
        _current_unseen,
        ("rotate", "audit_after_the_ledger_was_lost", "change_the_rotation", "retire"),
    ),
    Mutant("the fingerprint is the key itself", tasks.create, "fingerprint", _leaky_fingerprint),
]
"""Every wrong version."""


@dataclass(frozen=True)
class Caught:
    """Whether and how a mutant was caught."""

    by: str | None
    seconds: float
    histories: int


def hunt(mutant: Mutant, histories: int = MAX_HISTORIES) -> Caught:
    """Let histories run until one of them fails.

    Args:
        mutant: The wrong version.
        histories: After how many it got away.

    Returns:
        Which promise it broke, or `None` where it got away.

    Raises:
        Exception: The simulation itself is at fault; that proves nothing about the mutant.
    """
    begun, before = time.monotonic(), COUNTED["histories"]
    by = None
    chosen = settings(
        max_examples=histories,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    machine = seed(0)(histories_of(*mutant.among, **mutant.begun_with))
    with mutant.planted(), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_state_machine_as_test(machine, settings=chosen)
        except BrokenPromiseError as broken:
            by = str(broken)
    return Caught(by, time.monotonic() - begun, COUNTED["histories"] - before)


def main() -> int:
    """Hunt every mutant, let the right version live through as many histories, and print the table.

    Returns:
        0 if all mutants were caught, and the right version never was.
    """
    table = Table("wrong version", "caught by", "histories of", "seconds", "the right version", title="Mutants")
    convincing = True
    for mutant in MUTANTS:
        caught = hunt(mutant)
        right = hunt(mutant.undone(), caught.histories)
        convincing = convincing and caught.by is not None and right.by is None
        table.add_row(
            mutant.wrong,
            (caught.by or "")[:80] or "[red]not caught[/]",
            ", ".join(mutant.among) or "all rules",
            f"{caught.seconds:.1f}",
            f"[red]{right.by}[/]" if right.by else f"kept {right.histories} histories",
        )
    Console().print(table)
    return 0 if convincing else 1


if __name__ == "__main__":
    sys.exit(main())
