"""Histories that once broke a promise, as Hypothesis printed them.

To add one, call `_begun` with what differs from its form, and paste the steps of the failure.
"""

from __future__ import annotations

import datetime  # noqa: ICN001 - as Hypothesis spells it
from typing import Any

from blocks.openrouter.lists import ListKind
from tasks.model.rotation import Retirement
from tests.simulation.machine import Histories
from tests.simulation.world.fates import Fate


def _begun(**filled_in: Any) -> Histories:
    state = Histories()
    form = {
        "names": ["vault-secret/a"],
        "overlap": datetime.timedelta(0),
        "retirement": Retirement(),
        "key": {},
        "minimum_age": datetime.timedelta(0),
        "adopts": False,
    }
    state.begin(**{**form, **filled_in})
    return state


def test_a_late_write_of_a_key_that_was_given_up_stays_out() -> None:
    """A write that takes effect after its key was given up in an emergency brings no dead key into a destination."""
    state = _begun()
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.rotate(emergency=False, planned=[(("write vault-secret", 0), Fate.LATE)], scheduled=False)
    state.rotate(emergency=True, planned=[(("write vault-secret", 0), Fate.FAILS)], scheduled=False)
    state.retire(on_time=False, planned=[])
    state.late_effects_happen()
    state.teardown()


def test_a_key_is_not_brought_back_while_a_paused_retirement_is_about_to_delete_it() -> None:
    """A retirement that is paused right before its delete has announced it, so a restore leaves that key alone."""
    state = _begun(overlap=datetime.timedelta(hours=24))
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.the_clock_jumps(hours=25)
    state.paused(kind="retire", other="restore", pause_at=("delete a key", 0), planned=[])
    state.teardown()


def test_a_key_that_the_account_in_use_does_not_know_is_not_taken_for_unused() -> None:
    """A key of another account is not revoked unchecked: its use is checked once its own account is back."""
    state = _begun(retirement=Retirement(retire_when="unused"))
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.exchange_the_management_key(account="account-2")
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.exchange_the_management_key(account="account-1")
    state.retire(on_time=False, planned=[])
    state.teardown()


def test_a_removal_that_was_killed_has_ended_the_key_that_was_adopted() -> None:
    """A rotation that is added again owes no second overlap to a key that it adopted before its removal."""
    state = _begun(overlap=datetime.timedelta(hours=24), adopts=True)
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.remove(keys="revoke", planned=[(("cancel the retirements", 0), Fate.KILLED_BEFORE)])
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.teardown()


def test_a_restored_key_that_is_young_again_is_replaced_before_it_expires() -> None:
    """The minimum age counts from the restore, and the expiry from the creation, eight days earlier."""
    day = datetime.timedelta(days=1)
    state = _begun(overlap=day, minimum_age=16 * day, key={"expires_after": 18 * day})
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.the_clock_jumps(hours=192)
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.restore(planned=[])
    state.the_clock_jumps(hours=192)
    state.rotate(emergency=False, planned=[], scheduled=True)
    state.teardown()


def test_a_successor_inherits_from_the_key_in_use_after_the_database_was_restored() -> None:
    """The ledger's current key is an earlier one, without the guardrail that the key in use has got since."""
    state = _begun(overlap=datetime.timedelta(hours=24), key={"inherit": True})
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.back_up_the_database()
    state.change_the_key(changes={"guardrail_id": "guardrail-1"})
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.restore_the_database(which=0)
    state.change_the_key(changes={"guardrail_id": None})
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.teardown()


def test_a_list_that_names_no_live_key_may_stay_as_it_is() -> None:
    """OpenRouter accepts neither an empty list nor one with a dead key, and to admit every key would be worse."""
    state = _begun(overlap=datetime.timedelta(hours=24), key={"inherit": True})
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.restrict_to_the_current_key(kind=ListKind.BYOK, with_others=False)
    state.delete_a_key(which=0)
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.delete_a_key(which=1)
    state.teardown()


def test_a_retry_of_an_emergency_ends_keys_at_once() -> None:
    """A write without check-and-set that the Retry overtakes may publish a dead key, as with the emergency itself."""
    state = _begun(names=["secret/c"])
    state.paused(kind="emergency", other="retry", pause_at=("write secret", 0), planned=[])
    state.teardown()


def test_a_late_write_has_arrived_before_an_emergency_is_retried() -> None:
    """A write that arrived after the Retry could publish a key that the Retry has revoked."""
    state = _begun(names=["infisical-secret/d", "secret/c"])
    state.delete_a_connection(exists=False, name="openrouter")
    state.plan(emergency=True, scheduled=False)
    state.overtaken(looks=0, other="rotate")
    state.quiet()
    state.delete_the_ledger()
    state.retry(planned=[(("write secret", 0), Fate.LATE), (("delete a key", 0), Fate.KILLED_BEFORE)], which=1)
    state.retry(planned=[], which=0)
    state.teardown()


def test_a_key_that_was_given_up_late_is_left_nowhere() -> None:
    """The late write of the ledger was prepared before the block was edited, so it names no former place."""
    state = _begun(names=["infisical-secret/d"])
    late = [(("write the ledger", 1), Fate.LATE)]
    state.paused(kind="rotate", other="rotate", pause_at=("write infisical", 0), planned=late)
    state.edit_a_block(back=False, name="infisical-secret/d")
    state.teardown()


def test_a_late_write_of_the_ledger_has_arrived_before_a_key_is_renamed() -> None:
    """Without its marker, a key is the rotation's only if the ledger contains it."""
    state = _begun()
    state.rotate(emergency=False, planned=[], scheduled=False)
    state.rotate(emergency=False, planned=[(("write the ledger", 1), Fate.LATE)], scheduled=False)
    state.rename_a_key(which=1, keeps_marker=False)
    state.teardown()


def test_a_deleted_block_that_was_not_given_the_current_key_may_hold_the_former_one() -> None:
    """A destination without a block cannot be read, and the run that superseded the key did not publish to it."""
    state = _begun(names=["secret/c", "vault-secret/a"])
    state.quiet()
    state.remove_a_block(exists=False, name="vault-secret/a")
    state.rotate_for_one_destination(emergency=False, which=0)
    state.teardown()


def test_a_deleted_block_may_hold_a_key_that_was_found_again() -> None:
    """A destination without a block cannot be read, and the ledger that knew where the key was published is lost."""
    state = _begun(names=["vault-secret/a", "secret/c"])
    state.quiet()
    state.remove_a_block(exists=False, name="secret/c")
    state.delete_the_ledger()
    state.rotate_for_one_destination(emergency=False, which=0)
    state.teardown()


def test_an_adopted_key_is_replaced_by_the_try_of_the_run_that_took_it_up() -> None:
    """The minimum age does not protect an adopted key, because no run of the rotation has published it."""
    state = _begun(names=["infisical-secret/d"], minimum_age=datetime.timedelta(hours=12), adopts=True)
    late = [(("write the ledger", 0), Fate.LATE)]
    state.rotate_with_tries(emergency=False, planned=late, regular=False, scheduled=True)
    state.teardown()


def test_a_try_goes_on_where_another_run_has_given_its_key_up_and_failed() -> None:
    """A key that was given up is superseded but never was current, so it does not prove a later rotation."""
    state = _begun(names=["infisical-secret/d"])
    state.paused(kind="rotate", other="rotate", pause_at=("create the key", 0), planned=[])
    state.back_up_the_database()
    state.overtaken(looks=0, other="rotate")
    state.openrouter_cuts_names(longest=65)
    state.restore_the_database(which=0)
    state.rotate_with_tries(emergency=False, planned=[(("", 13), Fate.FAILS)], regular=True, scheduled=False)
    state.teardown()
