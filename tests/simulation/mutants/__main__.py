"""Print the table of mutants: `make mutants`."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants.hunt import hunt


def main() -> int:
    """Hunt every mutant, run as many histories of the right version, and print the table.

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
