"""The final state messages of the flows."""

from __future__ import annotations

from collections.abc import Sequence

from blocks.errors import ConfigurationError, KeyRotationError, LedgerError, OverwrittenError
from flows.show.rotation_page import how_it_ends
from tasks.life.remove import expiry_before
from tasks.model.decisions import Situation
from tasks.model.former_places import left_behind
from tasks.model.keys import fingerprint
from tasks.model.ledger import Ledger
from tasks.model.records import Current, Superseded
from tasks.model.times import show_time
from tasks.model.tries import Next
from tasks.model.written_off import WrittenOff
from tasks.world.run import LOOK, Run

PAGE = "docs/how-to/troubleshooting.md"
TASKS = {
    "create-key": "create a key",
    "verify-key": "verify the new key",
    "publish": "publish the new key",
    "revoke-key": "revoke the superseded keys",
    "recover": "clean up after an earlier run",
    "carry over": "add the key to the account's lists",
}
"""Steps whose names need an explanation in a message; other names are used as they are."""


def rotated(run: Run, situation: Situation, before: Sequence[Superseded] = ()) -> str:
    """Return the message of a completed rotation.

    Args:
        run: The run.
        situation: The situation at its start.
        before: The superseded keys before this run revoked what was due.
    """
    current, rest = run.ledger.current, "; ".join([*_ended(run.ledger, before), _superseded_keys(run.ledger)])
    if current is None:
        return "No key is published yet."
    if situation is Situation.TOO_YOUNG:
        return (
            f"Nothing to do: the key {current.label} is younger than its minimum age, or newer than this run's "
            f"scheduled time; {rest}.{_warnings(run)}"
        )
    if run.ledger.pending is not None:
        return (
            f"Already rotated, but the later rotation by run {run.ledger.pending.run_id} is unfinished: retry that "
            f"run, or start a new one. The key {current.label} is the current one."
        )
    if situation is Situation.ALREADY_ROTATED:
        return (
            f"Already rotated: the key {current.label} is the current one{_missing_at(run, current)}; "
            f"{rest}.{_warnings(run)}"
        )
    verb = "Finished an interrupted rotation" if situation is Situation.KEY_PUBLISHED else "Rotated"
    count = len(current.destinations)
    return (
        f"{verb}: the key {current.label} is live at {count} "
        f"destination{'s' if count > 1 else ''}; {rest}.{_warnings(run)}"
    )


def _warnings(run: Run) -> str:
    """Return the run's warnings, and a sentence for each former place that may still hold a key."""
    return "".join(f" {sentence}" for sentence in [*run.warnings, *left_behind(run.ledger)])


def _missing_at(run: Run, current: Current) -> str:
    """Name the destinations without the current key, as seen by a run that published nothing."""
    seen = [name for name in current.destinations if name in run.contents]
    others = [name for name in seen if fingerprint(run.contents[name].value) != current.fingerprint]
    return f", but it is not in {', '.join(others)}: start a new run" if others else ""


def superseded_since(run: Run, before: Sequence[Superseded]) -> str:
    """Return the message of a Retry that another rotation has made obsolete, given the superseded keys at its start."""
    current = run.ledger.current
    why = "this run has completed before" if run.identity.completed else "a later run has already rotated"
    ended = "; ".join(_ended(run.ledger, before))
    done = f"Nothing to publish: {why}; {ended}" if ended else f"Nothing to do: {why}"
    if current is None:
        return f"{done}. There is no current key now; to make one, start a new run."
    return f"{done}. The key {current.label} is the current one{_missing_at(run, current)}.{_warnings(run)}"


def retired(run: Run, before: Sequence[Superseded]) -> str:
    """Return the message of a completed retirement, given the superseded keys at its start."""
    ended = ". ".join(f"{what[0].upper()}{what[1:]}" for what in _ended(run.ledger, before))
    return f"{ended or 'Nothing was due'}; {_superseded_keys(run.ledger)}.{_warnings(run)}"


def _ended(ledger: Ledger, before: Sequence[Superseded]) -> list[str]:
    """List the superseded keys that a run has revoked or disabled."""
    left = {key.hash: key for key in ledger.superseded}
    gone = [key.label for key in before if key.hash not in left]
    disabled = [key.label for key in before if not key.disabled and key.hash in left and left[key.hash].disabled]
    return [f"revoked {', '.join(gone)}"] * bool(gone) + [f"disabled {', '.join(disabled)}"] * bool(disabled)


def restored(run: Run) -> str:
    """Return the message of a restored key."""
    current = run.ledger.current
    label = current.label if current else "none"
    return f"Restored: the key {label} is live again; {_superseded_keys(run.ledger)}.{_warnings(run)}"


def applied(run: Run, changed: Sequence[str]) -> str:
    """Return the message of applied settings, given their names."""
    current = run.ledger.current
    label = current.label if current else "none"
    what = f"changed {', '.join(changed)}" if changed else "nothing to change at OpenRouter"
    return f"Key {label}: {what}."


def removed(run: Run, before: Sequence[Superseded] | None, *, had_deployment: bool, emptied: Sequence[str] = ()) -> str:
    """Return the message of a removed rotation.

    Args:
        run: The run.
        before: The keys that were to be revoked; `None` if there was no ledger.
        had_deployment: Whether this run deleted its deployment.
        emptied: The destinations that were emptied.
    """
    ledger = run.ledger
    if before is None and not had_deployment:
        return f"Nothing to do: the rotation {run.name} does not exist."
    left = {key.hash for key in ledger.superseded}
    deleted = [key.label for key in before or () if key.hash not in left]
    said = [f"The rotation {run.name} was removed."]
    said += [f"Deleted at OpenRouter: {', '.join(deleted)}."] * bool(deleted)
    said += [f"The key {ledger.kept.label} was kept and is no longer managed."] if ledger.kept else []
    said += expiry_before(ledger.kept, None)
    said += [f"Not yet revoked; {_superseded_keys(ledger)}."] * bool(left)
    said += [f"No key of the rotation is left in {', '.join(emptied)}."] * bool(emptied)
    return f"{' '.join(said)}{_warnings(run)}"


def nothing_to_remove(run: Run) -> str:
    """Return the message of a Retry of a removal that has completed already."""
    current = run.ledger.current
    again = f" The rotation {run.name} was added again; to remove it, start a new run." if current else ""
    return f"Nothing to do: this run has completed before.{again}"


def wrote_off(run: Run, entry: WrittenOff) -> str:
    """Return the message of a key that was written off.

    Args:
        run: The run.
        entry: The key, and why.
    """
    return (
        f"Written off: {entry.label} was not revoked, is no longer in the ledger, and may be alive at OpenRouter; "
        f"{_superseded_keys(run.ledger)}."
    )


def _superseded_keys(ledger: Ledger) -> str:
    if not ledger.superseded:
        return "no superseded keys"
    ends = ", ".join(f"{key.label} {how_it_ends(key)} {show_time(key.revoke_at)}" for key in ledger.superseded)
    return f"superseded: {ends}"


def failed(error: KeyRotationError, step: str, ledger: Ledger | None, following: Next | None = None) -> str:
    """Return what failed, what is still safe, what to do, and the address of the entry in the documentation.

    Args:
        error: The error.
        step: The step that failed.
        ledger: The ledger as read by this run; `None` if it was not read.
        following: The try that is scheduled, if any.
    """
    sentences = [_what_is_safe(error, step, ledger)]
    if following is not None:
        sentences.append(_tried_again(following))
    entries = dict.fromkeys(cause.entry for cause in error.causes or (error,))
    return f"{' '.join(sentences)} Help: {', '.join(map(address, entries))}"


def address(entry: str) -> str:
    """Return where an entry of the documentation is: a file in the checkout; with `.html`, a page of the site."""
    return f"{PAGE}#{entry.lower().replace(' ', '-')}"


def _what_is_safe(error: KeyRotationError, step: str, ledger: Ledger | None) -> str:
    if isinstance(error, ConfigurationError) and (ledger is None or ledger.pending is None):
        return str(error)
    if isinstance(error, LedgerError) and ledger is None:
        # The ledger is unreadable, and stays so on a Retry.
        return str(error)
    retry = f"Retry is safe; press it once {error.retry_when}."
    if ledger is None:
        return f"{error} No key was changed. {retry}"
    what = f"Could not {TASKS.get(step, step)}: {error}"
    if ledger.removed:
        return f"{what} The rotation is removed; {_superseded_keys(ledger)}. {retry}"
    live = f"The key {ledger.current.label} is live" if ledger.current else "No key of this rotation is live yet"
    if ledger.pending and ledger.pending.key:
        live += f", and the new key {ledger.pending.key.label} was created"
    if isinstance(error, OverwrittenError):
        # The destination may hold a key that this run has revoked.
        return f"{error} {live}."
    safe = f"Nothing was changed. {live}" if step == LOOK else f"{live}; no key that a destination holds was revoked"
    return f"{what} {safe}. {retry}"


def _tried_again(following: Next) -> str:
    if following.is_taken:
        at = show_time(following.at)
        return (
            f"This run counted as crashed before, and its try {following.number} of {at} finishes it: do nothing here."
        )
    failed_before = f"{following.number - 1} tries have failed already. " if following.needs_person else ""
    return f"{failed_before}The run is tried again automatically at {show_time(following.at)} (try {following.number})."
