"""What a run tells people: one sentence in its final state, and the rotation's state as an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.client.schemas.responses import DeploymentResponse

from blocks.errors import ConfigurationError, KeyRotationError
from tasks.decisions import Finding
from tasks.keys import moment
from tasks.ledger import Ledger, Superseded
from tasks.rotation import parse_rotation
from tasks.run import Run
from tasks.schedules import SLUG, read_timetable
from tasks.states import KeyState, state_of


def artifact_key(rotation: str) -> str:
    """Name the artifact that shows a rotation's state.

    Args:
        rotation: The rotation's name.

    Returns:
        The artifact's key.
    """
    return f"rotation-{rotation}"


def rotated(run: Run, finding: Finding) -> str:
    """Say how a rotation ended.

    Args:
        run: The run.
        finding: What it had found at its start.

    Returns:
        One sentence.
    """
    current = run.ledger.current
    if current is None:
        return "Nothing is published yet."
    if finding is Finding.TOO_YOUNG:
        return (
            f"Nothing to do: the key {current.label} is younger than its minimum age, or than the time for which this "
            f"run was scheduled; {_rest(run.ledger)}."
        )
    if run.ledger.pending is not None:
        return (
            f"Already rotated, and since then run {run.ledger.pending.run_id} has begun another rotation, which "
            f"is not finished: retry that run, or start a new one. The key {current.label} is live."
        )
    verb = {Finding.ALREADY_ROTATED: "Already rotated", Finding.KEY_PUBLISHED: "Finished an interrupted rotation"}
    places = len(current.destinations)
    return (
        f"{verb.get(finding, 'Rotated')}: the key {current.label} is live at {places} "
        f"destination{'s' if places > 1 else ''}; {_rest(run.ledger)}."
    )


def superseded_since(run: Run) -> str:
    """Say that a Retry came too late to matter.

    Args:
        run: The run.

    Returns:
        One sentence.
    """
    current = run.ledger.current
    label = current.label if current else "none"
    return f"Nothing to do: a later run has rotated since, and the key {label} is live."


def retired(run: Run, before: Sequence[Superseded]) -> str:
    """Say how a retirement ended.

    Args:
        run: The run.
        before: The superseded keys at its start.

    Returns:
        One sentence.
    """
    left = {key.hash: key for key in run.ledger.superseded}
    gone = [key.label for key in before if key.hash not in left]
    disabled = [key.label for key in before if not key.disabled and key.hash in left and left[key.hash].disabled]
    what = [f"Revoked {', '.join(gone)}"] * bool(gone) + [f"Disabled {', '.join(disabled)}"] * bool(disabled)
    return f"{'. '.join(what) or 'Nothing was due'}; {_rest(run.ledger)}."


def restored(run: Run) -> str:
    """Say how a key was brought back.

    Args:
        run: The run.

    Returns:
        One sentence.
    """
    current = run.ledger.current
    label = current.label if current else "none"
    return f"Brought back: the key {label} is live again; {_rest(run.ledger)}."


def applied(run: Run, changed: Sequence[str]) -> str:
    """Say which settings reached the current key.

    Args:
        run: The run.
        changed: The names of the settings.

    Returns:
        One sentence.
    """
    current = run.ledger.current
    label = current.label if current else "none"
    what = f"Changed {', '.join(changed)}" if changed else "Nothing to change"
    return f"{what} at the key {label}."


def removed(run: Run, *, had_deployment: bool, gone: bool) -> str:
    """Say how a rotation was taken away.

    Args:
        run: The run.
        had_deployment: Whether this run deleted its deployment.
        gone: Whether there was no ledger.

    Returns:
        One or two sentences.
    """
    ledger = run.ledger
    if gone and not had_deployment:
        return f"Nothing to do: there is no rotation {run.name} any more."
    kept = f" The key {ledger.kept.label} was kept and is yours now." if ledger.kept else ""
    later = f" Still to be revoked: {_rest(ledger)}." if ledger.superseded else ""
    return f"The rotation {run.name} was removed.{kept}{later}"


def _rest(ledger: Ledger) -> str:
    if not ledger.superseded:
        return "no older key is alive"
    ends = ", ".join(f"{key.label} {_ends(key)} {moment(key.revoke_at)}" for key in ledger.superseded)
    return f"superseded: {ends}"


def failed(error: KeyRotationError, step: str, ledger: Ledger | None) -> str:
    """Say for the person on call what failed, what is still safe, and what to do.

    Args:
        error: What failed, in one sentence.
        step: The step that failed.
        ledger: The ledger as this run knows it, if it got that far.

    Returns:
        A few sentences.
    """
    if isinstance(error, ConfigurationError) and (ledger is None or ledger.pending is None):
        return str(error)
    if ledger is None:
        return f"{error} No key was changed; Retry is safe."
    if ledger.removed:
        return f"{step} failed: {error} The rotation is removed; {_rest(ledger)}. Retry is safe."
    live = f"The key {ledger.current.label} is live" if ledger.current else "No key of this rotation is live yet"
    if ledger.pending and ledger.pending.key:
        live += f", and the new key {ledger.pending.key.label} was created"
    return f"{step} failed: {error} {live}; no key that a destination holds was revoked. Retry is safe."


def as_markdown(run: Run, message: str) -> str:
    """Show the state of a rotation.

    Args:
        run: The run.
        message: How the run ended.

    Returns:
        Markdown for an artifact, without any secret.
    """
    ledger = run.ledger
    lines = [f"# Rotation {run.name}", "", message, "", *_keys(ledger), "", "## Destinations", ""]
    lines += [f"- `{name}`" for name in (ledger.current.destinations if ledger.current else ())] or ["- none yet"]
    lines += ["", "## Next step", "", _next_step(ledger)]
    if run.notes:
        lines += ["", "## To know", "", *(f"- {note}" for note in run.notes)]
    return "\n".join(lines)


def plan_as_markdown(run: Run, checked: Sequence[str], steps: Sequence[str]) -> str:
    """Show what a run would do.

    Args:
        run: The run.
        checked: What was checked.
        steps: The steps of a run now.

    Returns:
        Markdown for an artifact, without any secret.
    """
    lines = [f"# Plan of rotation {run.name}", "", "Nothing was changed. A run now would do this:", ""]
    lines += [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    lines += ["", "## Checked", "", *(f"- {sentence}" for sentence in checked)]
    lines += ["", "## Keys now", "", *_keys(run.ledger)]
    if run.notes:
        lines += ["", "## To know", "", *(f"- {note}" for note in run.notes)]
    return "\n".join(lines)


def _keys(ledger: Ledger) -> list[str]:
    rows = ["| Key | State | Time | Made by run |", "| --- | --- | --- | --- |"]
    if ledger.current:
        rows.append(
            f"| `{ledger.current.label}` | current | since {moment(ledger.current.since)} | "
            f"{ledger.current.made_by or 'adopted'} |"
        )
    if ledger.pending:
        label = f"`{ledger.pending.key.label}`" if ledger.pending.key else "not known"
        rows.append(f"| {label} | pending | since {moment(ledger.pending.intended_at)} | {ledger.pending.run_id} |")
    rows += [
        f"| `{key.label}` | {_state(key)} | {_ends(key)} {moment(key.revoke_at)} | {key.made_by or 'adopted'} |"
        for key in ledger.superseded
    ]
    return rows


def _state(key: Superseded) -> str:
    state = state_of(key)
    return f"{state}, still used" if key.postponed and state is KeyState.SUPERSEDED else state


def _ends(key: Superseded) -> str:
    return "is looked at again" if key.postponed and not key.disabled else "ends"


def _next_step(ledger: Ledger) -> str:
    if ledger.pending:
        return "Retry the failed run, or start a new one: both finish or clean up what is pending."
    if ledger.superseded:
        first = min(ledger.superseded, key=lambda key: key.revoke_at)
        what = "looked at again, because it was still used," if first.postponed and not first.disabled else "revoked"
        return f"The superseded key `{first.label}` is {what} at {moment(first.revoke_at)}."
    return "The next rotation, by its schedule or by hand."


def as_settings(deployment: DeploymentResponse) -> dict[str, Any]:
    """Spell what a person can set of a rotation, for a comparison.

    Args:
        deployment: The rotation's deployment.

    Returns:
        The rotation's fields, its `schedule`, and `auto_rotation`.
    """
    rotation = deployment.parameters.get("rotation")
    try:
        settings = parse_rotation(rotation).model_dump(mode="json")
    except ConfigurationError:
        # Somebody has put something else there; it is compared as it stands.
        settings = dict(rotation) if isinstance(rotation, Mapping) else {"rotation": rotation}
    own = next((each for each in deployment.schedules if each.slug == SLUG), None)
    timetable = read_timetable(own.schedule) if own else None
    return {
        **settings,
        "schedule": str(timetable) if timetable else None,
        "auto_rotation": bool(own and own.active and not deployment.paused),
    }


def change_table(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Show what changed, field by field.

    Args:
        changes: The fields with their former and their new values.

    Returns:
        The lines of a table in markdown.
    """
    if not changes:
        return ["Nothing: every field is as it was."]
    rows = [f"| {name} | {_spelt(before)} | {_spelt(after)} |" for name, (before, after) in changes.items()]
    return ["| Field | Before | Now |", "| --- | --- | --- |", *rows]


def _spelt(value: Any) -> str:
    if value is None or value in ("", []):
        return "none"
    return cell(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def cell(text: str) -> str:
    """Make a text fit into a cell of a markdown table.

    Args:
        text: Any text.

    Returns:
        One line, whose bars do not end the cell.
    """
    return " ".join(text.replace("|", "\\|").split())
