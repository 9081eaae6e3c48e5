"""Ledgers as Prefect stores them: each term is a variable of its own, created once and never changed.

Prefect's API has no check-and-set, but creating a variable is exclusive: of several requests for one name, one
succeeds. So a write of the ledger creates the next term. A late request finds the name taken, or creates a term that is
not the newest, which nobody reads.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any

from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import Variable
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from blocks.errors import OtherRunError
from tasks.model.ledger import FORMAT, Ledger, parse_ledger
from tasks.world.api import OWN_TAG, api_errors, pages
from tasks.world.gate import persistently, sent_once
from tasks.world.open_ledger import LedgerTerm, OwnTermError, is_closed, prune

READING = "reading the ledger"
WRITING = "writing the ledger"
TERM_DIGITS = 8
LOOKED_AT = 20
"""How many terms one read returns at most: those that a run leaves, and those of runs that died."""
_OURS = re.compile(rf"{OWN_TAG}_([a-z0-9-]+)_([0-9]{{{TERM_DIGITS}}})")
_BEFORE_TERMS = re.compile(rf"{OWN_TAG}-([a-z0-9-]+)")
"""The names of ledgers in format 1, which had no terms."""


def term_variable(rotation: str, number: int) -> str:
    """Return the name of a term's variable; no rotation's name contains an underscore."""
    return f"{OWN_TAG}_{rotation}_{number:0{TERM_DIGITS}}"


async def all_ledgers() -> AsyncIterator[tuple[str, Any]]:
    """Yield the name and the newest term's value of every rotation's ledger.

    Raises:
        ServiceError: Prefect's API failed.
    """
    for name, terms in sorted((await _all_terms()).items()):
        if not is_closed(terms[0].value):
            yield name, terms[0].value


async def prune_ledgers() -> None:
    """Delete the outdated terms of all ledgers.

    Raises:
        ServiceError: Prefect's API failed; the next call continues.
    """
    for name, terms in (await _all_terms()).items():
        await prune(VariableStore(name), terms)


async def _all_terms() -> dict[str, list[LedgerTerm]]:
    found: dict[str, list[LedgerTerm]] = {}
    async for variable in _variables(f"{OWN_TAG}%", "NAME_ASC"):
        # Prefect's pattern matches anywhere in a name, and the sort order depends on the database.
        if ours := _OURS.fullmatch(variable.name) or _BEFORE_TERMS.fullmatch(variable.name):
            number = int(ours[2]) if ours.re is _OURS else 0
            found.setdefault(ours[1], []).append(LedgerTerm(number, variable.value))
    return {name: sorted(terms, key=lambda term: -term.number) for name, terms in found.items()}


async def _variables(pattern: str, sort: str) -> AsyncIterator[Variable]:
    body = {"variables": {"name": {"like_": pattern}}, "sort": sort}
    async for page in pages("/variables/filter", body, READING):
        with api_errors(READING):
            found = Variable.model_validate_list(page)
        for variable in found:
            yield variable


async def read_ledger(rotation: str) -> Ledger:
    """Return a rotation's ledger; an empty one if there is none.

    Raises:
        LedgerError: This package cannot read it.
        ServiceError: Prefect's API failed.
    """
    terms = await VariableStore(rotation).newest()
    return parse_ledger(rotation, terms[0].value) if terms else Ledger()


class VariableStore:
    """The terms of a rotation's ledger, as Prefect variables.

    Args:
        rotation: The rotation's name.
    """

    def __init__(self, rotation: str) -> None:
        self._rotation = rotation
        self._before_terms = f"{OWN_TAG}-{rotation}"

    async def newest(self) -> list[LedgerTerm]:
        """Return the newest terms, the newest first; a ledger of format 1, which has no terms, as term 0."""
        # In a pattern, an underscore matches any character. The zero of the number excludes most other rotations, the
        # comparison of exact names the rest.
        prefix = f"{OWN_TAG}_{self._rotation}_0"
        client, _ = get_or_create_client()
        with api_errors(READING):
            body = {"variables": {"name": {"like_": f"{prefix}%"}}, "sort": "NAME_DESC", "limit": LOOKED_AT}
            page = (await client.request("POST", "/variables/filter", json=body)).json()
            found = self._terms(Variable.model_validate_list(page))
        if not found and len(page) == LOOKED_AT:
            found = self._terms([variable async for variable in _variables(f"{prefix}%", "NAME_DESC")])
        return found or await self._without_terms()

    def _terms(self, variables: Iterable[Variable]) -> list[LedgerTerm]:
        matches = ((_OURS.fullmatch(variable.name), variable.value) for variable in variables)
        return [LedgerTerm(int(match[2]), value) for match, value in matches if match and match[1] == self._rotation]

    async def _without_terms(self) -> list[LedgerTerm]:
        client, _ = get_or_create_client()
        with api_errors(READING):
            variable = await client.read_variable_by_name(self._before_terms)
        return [] if variable is None else [LedgerTerm(0, variable.value)]

    async def create(self, term: LedgerTerm) -> None:
        """Create a term; safe to repeat, because of all requests for one name a single one succeeds.

        Raises:
            OtherRunError: Another run has created this term.
            OwnTermError: This attempt has created this term with other content, in a write that seemed to fail.
            ServiceError: Prefect's API failed.
        """
        name = term_variable(self._rotation, term.number)

        async def attempt() -> None:
            try:
                async with sent_once(WRITING) as client:
                    await client.create_variable(VariableCreate(name=name, value=term.value, tags=self._tags))
            except ObjectAlreadyExists:
                await self._require_ours(name, term.value)

        await persistently(attempt)

    @property
    def _tags(self) -> list[str]:
        return [OWN_TAG, self._rotation]

    async def _require_ours(self, name: str, value: Any) -> None:
        # An earlier try of this write may have created it, but its answer was lost.
        async with sent_once(WRITING) as client:
            stored = await client.read_variable_by_name(name)
        if stored is not None and stored.value == value:
            return
        if stored is not None and _writer(stored.value) == _writer(value) is not None:
            raise OwnTermError
        raise OtherRunError(f"Another run has just written the ledger of {self._rotation}, so this one stopped.")

    async def close_format_1(self, value: Mapping[str, Any]) -> None:
        """Mark a ledger of format 1 as continued in terms, so that older packages refuse it."""

        async def attempt() -> None:
            closed = VariableUpdate(name=self._before_terms, value={**value, "format": FORMAT}, tags=self._tags)
            async with sent_once(WRITING) as client:
                await client.update_variable(closed)

        await persistently(attempt)

    async def delete(self, numbers: Iterable[int]) -> None:
        """Delete terms; ignore those that are gone already.

        Raises:
            ServiceError: Prefect's API failed.
        """
        # One by one: an embedded database rejects some of several concurrent deletions.
        for number in numbers:
            await self._delete(term_variable(self._rotation, number))

    async def _delete(self, name: str) -> None:
        async def attempt() -> None:
            with suppress(ObjectNotFound):
                async with sent_once("deleting a term of the ledger") as client:
                    await client.delete_variable_by_name(name)

        await persistently(attempt)


def _writer(value: Any) -> Any:
    return value.get("writer") if isinstance(value, Mapping) else None
