"""An audit as a table, and in one sentence."""

from __future__ import annotations

from tasks.audit.findings import Report
from tasks.model.keys import show_time

MAX_ROWS = 500
"""How many findings the artifact shows."""


def as_table(report: Report) -> list[dict[str, str]]:
    """Show the findings of an audit as a table.

    Args:
        report: What was found.

    Returns:
        One row for each finding, the gravest first; one row that says so where there is none, or how many more there
        are.
    """
    rows = [
        {
            "severity": "repaired" if finding.repaired else finding.severity.name.lower(),
            "finding": finding.kind.value,
            "rotation": finding.rotation,
            "key": finding.key_label,
            "key hash": finding.key_hash,
            "what": finding.sentence,
            "what to do": "Nothing." if finding.repaired else finding.kind.advice,
        }
        for finding in report.findings[:MAX_ROWS]
    ]
    nothing = {"severity": "none", "finding": "", "rotation": "", "key": "", "key hash": "", "what to do": "Nothing."}
    if not rows:
        return [{**nothing, "what": "Everything agrees."}]
    if left_out := len(report.findings) - len(rows):
        advice = "Look after those above, then audit again; each finding is an event, too."
        rows.append({**nothing, "what": f"{left_out} more findings are not shown.", "what to do": advice})
    return rows


def as_description(report: Report, run_id: object) -> str:
    """Say what was audited, when and by which run, and how many keys there are.

    Args:
        report: What was found.
        run_id: The flow run's id.

    Returns:
        Markdown for an artifact, without any secret.
    """
    lines = [f"# Audit of {report.connection}", "", as_sentence(report), ""]
    lines += [f"- When: {show_time(report.at)}", f"- By flow run: {run_id}"]
    if report.counts is not None:
        lines += [
            f"- Keys seen: {report.counts.seen}, disabled and expired ones included",
            f"- of rotations: {report.counts.of_rotations}",
            f"- with a marker that no ledger explains: {report.counts.unexplained}",
            f"- of no rotation: {report.counts.of_nobody}",
        ]
    return "\n".join(lines)


def as_sentence(report: Report) -> str:
    """Say how an audit ended.

    Args:
        report: What was found.

    Returns:
        One or two sentences.
    """
    needing = report.needing_person()
    repaired = sum(finding.repaired for finding in report.findings)
    done = f" {repaired} repaired." if repaired else ""
    if needing:
        things = "1 finding needs" if len(needing) == 1 else f"{len(needing)} findings need"
        return f"{things} a person, first: {needing[0].sentence} {needing[0].kind.advice}{done}"
    if report.counts is None:
        return "Nothing could be looked at."
    return (
        f"Nothing needs a person: {report.counts.seen} keys seen, {report.counts.of_rotations} of rotations, "
        f"{report.counts.unexplained} with a marker that no ledger explains, {report.counts.of_nobody} of no rotation; "
        f"{len(report.findings)} findings to know.{done}"
    )
