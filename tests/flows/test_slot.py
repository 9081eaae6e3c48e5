"""The names of slots and ledgers, and of the flows whose runs hold a slot."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from hypothesis import given
from hypothesis import strategies as st
from prefect import Flow

import flows
from flows.runs import open_run
from flows.slot import emergency_slot_of, may_reclaim, slot_of
from tasks.model.rotation import is_slug
from tasks.world.inventory import OPENING_A_LEDGER, RunAtWork
from tasks.world.ledgers import term_variable

slugs = st.from_regex(r"[a-z0-9]{1,3}(-[a-z0-9]{1,9}){0,3}", fullmatch=True).filter(is_slug)


@given(slugs, slugs, st.integers(1, 10**7), st.integers(1, 10**7))
def test_no_name_of_one_rotation_is_one_of_another(one: str, other: str, term: int, another: int) -> None:
    """Whatever two rotations are called, they share no slot and no ledger; `checkout-emergency` is an ordinary name."""
    names = {slot_of(one), emergency_slot_of(one), term_variable(one, term)}
    others = {slot_of(other), emergency_slot_of(other), term_variable(other, another)}

    assert one == other or not names & others


def test_a_rotation_called_emergency_has_a_slot_of_its_own() -> None:
    """The slot of an emergency is no rotation's."""
    assert emergency_slot_of("checkout") != slot_of("checkout-emergency")


def test_a_run_of_every_flow_that_takes_a_slot_counts_as_its_holder() -> None:
    """A slot is taken back only from a run that is not at work, whichever flow it runs."""
    modules = [import_module(f"flows.{found.name}") for found in pkgutil.iter_modules(flows.__path__)]
    taking = {
        value.name
        for module in modules
        if vars(module).get("open_run") is open_run
        for value in vars(module).values()
        if isinstance(value, Flow) and value.fn.__module__ == module.__name__
    }

    assert taking == set(OPENING_A_LEDGER)


SLOT = slot_of("checkout")


@given(
    st.lists(
        st.builds(RunAtWork, st.uuids().map(str), st.booleans(), st.just(SLOT)),
        min_size=1,
        unique_by=lambda run: run.id,
    )
)
def test_of_the_runs_that_wait_for_a_leaked_slot_exactly_one_reclaims_it(waiting: list[RunAtWork]) -> None:
    """They do not take each other for its holder; where there is an emergency, it is that one."""
    reclaiming = [own for own in waiting if may_reclaim(SLOT, own, [run for run in waiting if run != own])]

    assert len(reclaiming) == 1
    assert reclaiming[0].is_emergency == any(run.is_emergency for run in waiting)


def test_a_slot_is_not_reclaimed_from_a_run_that_waits_for_none_or_another() -> None:
    """It may be the holder."""
    own = RunAtWork("1", is_emergency=True, waits_for=SLOT)

    for waits_for in ("", emergency_slot_of("checkout")):
        assert not may_reclaim(SLOT, own, [RunAtWork("2", is_emergency=False, waits_for=waits_for)])
