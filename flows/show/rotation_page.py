"""A rotation's artifact (keys, destinations, next step), and the plan of a run."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from flows.show.links import link
from tasks.model.former_places import left_behind
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded
from tasks.model.states import KeyState, state_of
from tasks.model.times import show_time
from tasks.world.run import Run

HEADER = ("| Key | State | Time | Made by run |", "| --- | --- | --- | --- |")


def artifact_key(rotation: str) -> str:
    """Return the key of the artifact that shows a rotation's state."""
    return f"rotation-{rotation}"


def plan_key(rotation: str) -> str:
    """Return the key of the artifact that shows the plan of a rotation's next run; no rotation's page has it."""
    return f"plan-{rotation}"


def as_markdown(run: Run, message: str) -> str:
    """Return the artifact's Markdown: the final message of the run, and the state of the rotation."""
    ledger = run.ledger
    lines = [f"# Rotation {run.name}", "", message, "", *_keys(ledger)]
    if not ledger.removed:
        lines += ["", "## Destinations", ""]
        lines += [f"- `{name}`" for name in (ledger.current.destinations if ledger.current else ())] or ["- none yet"]
    lines += ["", "## Next step", "", _next_step(ledger)]
    if left := left_behind(ledger):
        lines += ["", "## Former places", "", *(f"- {sentence}" for sentence in left)]
    if ledger.written_off:
        lines += ["", "## Written off", "", "Not revoked, and perhaps still alive at OpenRouter:", ""]
        lines += [
            f"- `{entry.label}` of the connection {entry.connection}, at {show_time(entry.at)} by run {entry.by}: "
            f"{entry.reason}"
            for entry in ledger.written_off
        ]
    if run.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in run.notes)]
    return "\n".join(lines)


def plan_as_markdown(run: Run, checked: Sequence[str], steps: Sequence[str]) -> str:
    """Return the Markdown of a plan: the steps that a run would take now, and what was checked."""
    lines = [f"# Plan of rotation {run.name}", "", "Nothing was changed. A run started now would take these steps:", ""]
    lines += [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    if checked:
        lines += ["", "## Checked", "", *(f"- {sentence}" for sentence in checked)]
    lines += ["", "## Keys", "", *_keys(run.ledger)]
    if run.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in run.notes)]
    return "\n".join(lines)


def _keys(ledger: Ledger) -> list[str]:
    rows: list[str] = []
    if ledger.current:
        rows.append(
            f"| `{ledger.current.label}` | current | since {show_time(ledger.current.since)} | "
            f"{_run(ledger.current.made_by)} |"
        )
    if ledger.pending:
        label = f"`{ledger.pending.key.label}`" if ledger.pending.key else "unknown"
        rows.append(
            f"| {label} | pending | since {show_time(ledger.pending.intended_at)} | {_run(ledger.pending.run_id)} |"
        )
    rows += [
        f"| `{key.label}` | {_state(key)} | {_until(key)} {show_time(key.revoke_at)} | {_run(key.made_by)} |"
        for key in ledger.superseded
    ]
    return [*HEADER, *rows] if rows else ["No keys."]


def _run(run_id: UUID | None) -> str:
    return "adopted" if run_id is None else link("flow-run", run_id, str(run_id))


def _state(key: Superseded) -> str:
    state = state_of(key)
    return f"{state}, still in use" if key.postponed and state is KeyState.SUPERSEDED else state


def _until(key: Superseded) -> str:
    """Return the words before `revoke_at` in a row that shows the key's state."""
    if key.disabled:
        return "deleted at"
    return "next check" if key.postponed else "until"


def how_it_ends(key: Superseded) -> str:
    """Return the words before `revoke_at`: a postponed key may outlive it, and a disabled one no longer works."""
    return f"disabled, {_until(key)}" if key.disabled else _until(key)


def _next_step(ledger: Ledger) -> str:
    if ledger.pending:
        return "Retry the failed run, or start a new one: either finishes or cleans up the pending rotation."
    if ledger.superseded:
        first = min(ledger.superseded, key=lambda key: key.revoke_at)
        at = show_time(first.revoke_at)
        if first.disabled:
            return f"The disabled key `{first.label}` is deleted at {at}; until then it can be restored."
        if first.postponed:
            return f"The superseded key `{first.label}` was still in use; next check at {at}."
        done = "disabled" if ledger.retirement.revoke == "disable-then-delete" and not first.at_once else "revoked"
        return f"The superseded key `{first.label}` is {done} at {at}."
    if ledger.removed:
        return "None: the rotation was removed."
    return "The next rotation, scheduled or manual."
