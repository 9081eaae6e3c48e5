"""What a wrong version is, and the forms that a rotation is begun with where it needs one."""

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
"""The form as it is filled in for a wrong version that needs nothing special."""
AT_ONCE = {**SIMPLE, "overlap": timedelta(0)}
CARRIED = {**SIMPLE, "key": {"carry_budget": True, "limit_reset": "monthly"}}
