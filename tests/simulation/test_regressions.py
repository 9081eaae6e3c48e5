"""Histories that once broke a promise, as Hypothesis printed them.

To add one, paste the steps of a failure from `state = Histories()` to `state.teardown()`.
"""

from __future__ import annotations

import datetime  # noqa: ICN001 - as Hypothesis spells it

from tasks.model.rotation import Retirement
from tests.simulation.machine import Histories
from tests.simulation.world.fates import Fate


def test_a_late_write_of_a_key_that_was_given_up_stays_out() -> None:
    """A write that takes effect after its key was given up in an emergency brings no dead key into a destination."""
    state = Histories()
    state.begin(
        names=["vault-secret/a"],
        overlap=datetime.timedelta(0),
        retirement=Retirement(),
        key={},
        minimum_age=datetime.timedelta(0),
        adopts=False,
    )
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.rotate(emergency=False, planned=[(("write vault-secret", 0), Fate.LATE)], scheduled=False)
    state.rotate(emergency=True, planned=[(("write vault-secret", 0), Fate.FAILS)], scheduled=False)
    state.retire(on_time=False, planned=[])
    state.late_effects_happen()
    state.teardown()


def test_a_key_is_not_brought_back_while_a_paused_retirement_is_about_to_delete_it() -> None:
    """A retirement that is paused right before its delete has announced it, so a restore leaves that key alone."""
    state = Histories()
    state.begin(
        names=["vault-secret/a"],
        overlap=datetime.timedelta(hours=24),
        retirement=Retirement(),
        key={},
        minimum_age=datetime.timedelta(0),
        adopts=False,
    )
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.the_clock_jumps(hours=25)
    state.paused(kind="retire", other="restore", pause_at=("delete a key", 0), planned=[])
    state.teardown()


def test_a_key_that_the_account_in_use_does_not_know_is_not_taken_for_unused() -> None:
    """A key of the former account is not announced as revoked unseen: with that account back, its use is looked at."""
    state = Histories()
    state.begin(
        names=["vault-secret/a"],
        overlap=datetime.timedelta(0),
        retirement=Retirement(retire_when="unused"),
        key={},
        minimum_age=datetime.timedelta(0),
        adopts=False,
    )
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.exchange_the_management_key(account="account-2")
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.exchange_the_management_key(account="account-1")
    state.retire(on_time=False, planned=[])
    state.teardown()


def test_a_removal_that_was_killed_has_ended_the_key_that_was_adopted() -> None:
    """A rotation that is filled in anew owes no second overlap to a key that it adopted before it was taken away."""
    state = Histories()
    state.begin(
        names=["vault-secret/a"],
        overlap=datetime.timedelta(hours=24),
        retirement=Retirement(),
        key={},
        minimum_age=datetime.timedelta(0),
        adopts=True,
    )
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.remove(keys="revoke", planned=[(("cancel the retirements", 0), Fate.KILLED_BEFORE)])
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.teardown()
