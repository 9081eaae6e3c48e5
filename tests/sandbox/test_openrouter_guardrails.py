"""The guardrails of the OpenRouter stand-in, verified with OpenRouter's own Python SDK."""

from __future__ import annotations

from uuid import uuid4

import pytest
from openrouter import OpenRouter, errors

from tests.sandbox.conftest import StandIn


def test_a_guardrail_is_assigned_to_a_key(stand_in: StandIn) -> None:
    """A key holds at most one guardrail; assigning another one replaces it."""
    key = stand_in.state.add_key(stand_in.state.accounts[0], {"name": "checkout"})

    with stand_in.sdk() as sdk:
        first, second = (sdk.guardrails.create(name=name).data.id for name in ("one", "two"))
        sdk.guardrails.bulk_assign_keys(id=first, key_hashes=[key.hash])
        assigned = sdk.guardrails.bulk_assign_keys(id=second, key_hashes=[key.hash])

        assert assigned.assigned_count == 1
        assert [_assigned(sdk, guardrail) for guardrail in (first, second)] == [[], [key.hash]]


def test_a_guardrail_is_taken_only_from_the_keys_that_hold_it(stand_in: StandIn) -> None:
    """Unassigning a guardrail does not affect a key that has another one."""
    key = stand_in.new_key()

    with stand_in.sdk() as sdk:
        held, other = (sdk.guardrails.create(name=name).data.id for name in ("held", "other"))
        sdk.guardrails.bulk_assign_keys(id=held, key_hashes=[key.hash])
        missed = sdk.guardrails.bulk_unassign_keys(id=other, key_hashes=[key.hash])
        still = _assigned(sdk, held)
        taken = sdk.guardrails.bulk_unassign_keys(id=held, key_hashes=[key.hash])

        assert (missed.unassigned_count, still) == (0, [key.hash])
        assert (taken.unassigned_count, _assigned(sdk, held)) == (1, [])


def test_all_assignments_are_listed(stand_in: StandIn) -> None:
    """One paged list contains every key of the account that has a guardrail, and no key of another account."""
    keys = [stand_in.new_key() for _ in range(3)]
    stand_in.new_key()
    stranger = stand_in.state.add_account("sk-or-v1-another-management-key")
    stand_in.state.add_key(stranger, {"name": "not ours"}).guardrail_id = str(uuid4())

    with stand_in.sdk() as sdk:
        one, two = (sdk.guardrails.create(name=name).data.id for name in ("one", "two"))
        sdk.guardrails.bulk_assign_keys(id=one, key_hashes=[keys[0].hash, keys[1].hash])
        sdk.guardrails.bulk_assign_keys(id=two, key_hashes=[keys[2].hash])
        page, found = sdk.guardrails.list_key_assignments(limit=2), dict[str, str]()
        while page is not None:
            assert page.result.total_count == 3
            found |= {assignment.key_hash: assignment.guardrail_id for assignment in page.result.data}
            page = page.next()

    assert found == {keys[0].hash: one, keys[1].hash: one, keys[2].hash: two}


def test_assigning_again_may_count_for_nothing(stand_in: StandIn) -> None:
    """It is configurable whether reassigning the same guardrail counts; the key keeps it either way."""
    key = stand_in.new_key()
    counts = []

    with stand_in.sdk() as sdk:
        guardrail = sdk.guardrails.create(name="one").data.id
        for counted in (True, True, False):
            stand_in.state.change({"counts_reassigned": counted})
            counts.append(sdk.guardrails.bulk_assign_keys(id=guardrail, key_hashes=[key.hash]).assigned_count)

        assert counts == [1, 1, 0]
        assert _assigned(sdk, guardrail) == [key.hash]


def test_an_unknown_key_or_guardrail_is_not_assigned(stand_in: StandIn) -> None:
    """An unknown key is not counted, and an unknown guardrail is a 404."""
    key = stand_in.new_key()

    with stand_in.sdk() as sdk:
        guardrail = sdk.guardrails.create(name="one").data.id
        assert sdk.guardrails.bulk_assign_keys(id=guardrail, key_hashes=["unknown"]).assigned_count == 0
        for call in (sdk.guardrails.bulk_assign_keys, sdk.guardrails.bulk_unassign_keys):
            with pytest.raises(errors.NotFoundResponseError):
                call(id=str(uuid4()), key_hashes=[key.hash])


def test_guardrails_are_listed_and_read(stand_in: StandIn) -> None:
    """The response to create, the list and the single view show a guardrail alike."""
    with stand_in.sdk() as sdk:
        created = sdk.guardrails.create(name="checkout", limit_usd=50, reset_interval="monthly").data
        listed = sdk.guardrails.list()
        assert listed is not None

        assert listed.result.data == [created]
        assert sdk.guardrails.get(id=created.id).data == created


def _assigned(sdk: OpenRouter, guardrail: str) -> list[str]:
    found = sdk.guardrails.list_guardrail_key_assignments(id=guardrail)
    assert found is not None
    return [assignment.key_hash for assignment in found.result.data]
