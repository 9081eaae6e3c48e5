"""Pause each kind of run before each of its calls in turn, while another run takes over."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tasks.model.rotation import Retirement
from tests.simulation.machine import Histories
from tests.simulation.strategies import Aim
from tests.simulation.world.fates import Fate

pytestmark = pytest.mark.slow
MOST_CALLS = 80
"""More calls than any run makes."""


def rotated(**filled_in: Any) -> Histories:
    """A rotation that has run once."""
    state = Histories()
    form = {
        "names": ["vault-secret/a", "vault-secret/b"],
        "overlap": timedelta(hours=24),
        "retirement": Retirement(),
        "key": {},
        "minimum_age": timedelta(0),
        "adopts": False,
    }
    state.begin(**{**form, **filled_in})
    return rotate(state)


def rotate(state: Histories, *planned: tuple[Aim, Fate]) -> Histories:
    """Rotate once more."""
    state.rotate(emergency=False, planned=list(planned), scheduled=False)
    return state


def due() -> Histories:
    """A superseded key is due."""
    state = rotate(rotated())
    state.the_clock_jumps(hours=25)
    return state


def disabled() -> Histories:
    """A superseded key was disabled."""
    return rotate(rotated(overlap=timedelta(0), retirement=Retirement(revoke="disable-then-delete")))


def carried() -> Histories:
    """Part of a budget is spent, which the next key carries over."""
    state = rotated(key={"carry_budget": True, "limit_reset": "monthly"})
    state.spend(amount=Decimal(3), which=0)
    return state


def unpublished() -> Histories:
    """A key was created and not published."""
    return rotate(rotated(), (("use the key", 0), Fate.FAILS))


def half_published() -> Histories:
    """A key was published to one of two destinations."""
    return rotate(rotated(), (("write vault-secret/b", 0), Fate.FAILS))


def changed() -> Histories:
    """A person has changed the settings."""
    state = rotated()
    state.change_the_key(changes={"limit_reset": "daily", "guardrail_id": "guardrail-1"})
    return state


@pytest.mark.parametrize("other", ["rotate", "restore", "remove"])
@pytest.mark.parametrize("kind", ["rotate", "emergency", "retire", "restore", "apply", "remove"])
@pytest.mark.parametrize("begin", [due, disabled, carried, unpublished, half_published, changed])
def test_a_run_that_is_overtaken_before_any_of_its_calls_does_no_harm(
    begin: Callable[[], Histories], kind: str, other: str
) -> None:
    """Wherever it is paused, it begins no change after another run has taken over, and every promise holds."""
    for at in range(MOST_CALLS):
        state = begin()
        told = len(state.model.story)

        state.paused(pause_at=("", at), kind=kind, other=other, planned=[])

        if not any("paused before" in line for line in state.model.story[told:]):
            return
    pytest.fail("the run never came to an end")


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        *itertools.product([due, disabled, unpublished, half_published], ["rotate", "emergency"]),
        *itertools.product([due, disabled], ["restore"]),
    ],
)
def test_a_run_beside_which_another_field_is_written_before_any_of_its_calls_succeeds(
    begin: Callable[[], Histories], kind: str
) -> None:
    """Another rotation may publish to a field of the same Vault secret at any moment; both fields are kept."""
    for at in range(MOST_CALLS):
        state = begin()
        told = len(state.model.story)

        state.paused(pause_at=("", at), kind=kind, other="person", planned=[])

        story = state.model.story[told:]
        if not any("paused before" in line for line in story):
            return
        assert not any("failed" in line for line in story), story
    pytest.fail("the run never came to an end")
