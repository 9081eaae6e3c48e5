"""The type of mutants, and the forms with which their histories begin."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from unittest import mock

from tasks.model.ledger import Ledger
from tasks.model.rotation import Retirement

ROTATE = importlib.import_module("flows.rotate")  # the package exports the flow under the same name


async def nothing(*_args: Any, **_how: Any) -> None:
    """Do nothing, in place of another coroutine function."""


@dataclass(frozen=True)
class Mutant:
    """A wrong version: a description of the mistake, and a replacement for an attribute of a target.

    If only certain steps reveal it, `among` names the rules of the machine to hunt it with, and `begun_with` fixes
    values of the form.
    """

    wrong: str
    target: Any
    name: str
    instead: Any
    among: tuple[str, ...] = ()
    begun_with: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Replace the attribute while the context lasts."""
        with mock.patch.object(self.target, self.name, self.instead):
            yield

    def undone(self) -> Mutant:
        """Return this mutant with the right version as replacement, to verify that it keeps the promise."""
        return replace(self, instead=getattr(self.target, self.name))


published_rightly = Ledger.published
changed_rightly = Ledger.changed
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
VAULT = ["vault-secret/a"]
SIMPLE = {
    "names": VAULT,
    "overlap": DAY,
    "retirement": Retirement(),
    "key": {},
    "minimum_age": timedelta(0),
    "adopts": False,
}
"""The form for a mutant that requires nothing special."""
AT_ONCE = {**SIMPLE, "overlap": timedelta(0)}
CARRIED = {**SIMPLE, "key": {"carry_budget": True, "limit_reset": "monthly"}}
