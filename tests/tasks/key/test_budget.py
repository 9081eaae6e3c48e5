"""A budget that rotation does not double."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.openrouter_account import Account
from sandbox.server import Fault
from tasks.model.events import Event
from tasks.model.keys import period_end
from tests.tasks.conftest import Life

CARRY = {"carry_budget": True}


async def spendable(life: Life) -> Decimal:
    """What all live keys together may still spend."""
    left = [life.openrouter.remaining(key) for key in life.openrouter.live_keys()]
    assert None not in left
    return sum(filter(None, left), Decimal(0))


async def test_without_it_a_rotation_starts_a_fresh_budget(life: Life) -> None:
    """This is what OpenRouter does, and what a person may want."""
    await life.rotate()
    life.spend(await life.held(), "30")

    await life.rotate()

    assert await spendable(life) == 70


async def test_the_new_key_starts_with_what_remained(life: Life) -> None:
    """Former and new key together can spend what the former one had left, and not a cent more."""
    life.change(key=CARRY)
    await life.rotate()
    former = await life.held()
    life.spend(former, "30.123457")

    await life.rotate()

    held = await life.held()
    assert held.limit == Decimal("19.876543")
    assert life.openrouter.remaining(former) == 0
    assert await spendable(life) == Decimal("19.876543")


async def test_two_rotations_in_one_period_carry_everything_over(life: Life) -> None:
    """The third key starts with what the first two have left."""
    life.change(key=CARRY)
    for _ in range(3):
        await life.rotate()
        life.spend(await life.held(), "10")

    assert await spendable(life) == 20


async def test_what_the_former_key_spends_during_the_rotation_counts_too(life: Life) -> None:
    """The rest is reckoned once the former key can spend no more."""
    life.change(key=CARRY)
    await life.rotate()
    former = await life.held()
    life.spend(former, "10")
    life.app.state.faults.add(Fault("before", "PATCH", "/keys/", status=403))
    await life.failure(life.rotate(run_id=(run := life.open().identity.id)))
    life.app.state.faults.clear()
    life.spend(former, "5")

    await life.rotate(run_id=run, attempt=2)

    assert await spendable(life) == 35


async def test_the_full_limit_comes_back_when_the_period_ends(life: Life) -> None:
    """A run is scheduled for the first of the month, and gives the current key its whole limit."""
    life.change(key=CARRY, overlap=timedelta(days=60))
    await life.rotate()
    former = await life.held()
    life.spend(former, "30")
    await life.rotate()
    held = await life.held()
    month_ends = datetime(2027, 1, 1, tzinfo=UTC)
    planned = month_ends in life.retirements

    life.time = month_ends
    await life.retire()

    assert planned
    assert held.limit == 50
    assert life.openrouter.remaining(former) == 0
    assert Event.BUDGET_RESTORED in [event for event, _ in life.events]


async def test_a_rotation_in_the_next_period_carries_nothing_of_the_last(life: Life) -> None:
    """Even where the run at the period's end did not take place."""
    life.change(key=CARRY)
    await life.rotate()
    life.spend(await life.held(), "30")
    await life.rotate()
    life.time = datetime(2027, 1, 2, tzinfo=UTC)
    life.spend(await life.held(), "5")

    await life.rotate()

    assert (await life.held()).limit == 45


async def test_a_limit_that_is_never_reset_is_carried_over_for_good(life: Life) -> None:
    """Without a reset no full limit ever comes back."""
    life.change(key={**CARRY, "limit_reset": "none"})
    await life.rotate()
    life.spend(await life.held(), "30")

    await life.rotate()
    life.later(days=400)
    await life.retire()

    assert (await life.held()).limit == 20


async def test_a_raised_limit_counts_at_once(life: Life) -> None:
    """What was spent is taken from the limit that the rotation names now."""
    life.change(key=CARRY)
    await life.rotate()
    life.spend(await life.held(), "30")
    life.change(key={"limit_usd": 100})

    await life.rotate()

    assert (await life.held()).limit == 70


async def test_apply_settings_keeps_what_is_spent(life: Life) -> None:
    """A limit raised in mid-period raises the rest by just as much."""
    life.change(key=CARRY)
    await life.rotate()
    life.spend(await life.held(), "30")
    await life.rotate()
    life.change(key={"limit_usd": 60})

    await life.apply()

    assert (await life.held()).limit == 30


async def test_an_exhausted_budget_makes_a_key_that_works_and_may_not_spend(life: Life) -> None:
    """A key without budget is a valid key: the rotation succeeds, and the consumer is told 402 as before."""
    life.change(key=CARRY)
    await life.rotate()
    life.spend(await life.held(), "50")

    await life.rotate()

    assert life.use(await life.held()) == 402


@pytest.mark.parametrize(
    ("reset", "now", "end"),
    [
        ("daily", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
        ("weekly", "2026-12-31T12:00:00", "2027-01-04T00:00:00"),
        ("weekly", "2027-01-04T00:00:00", "2027-01-11T00:00:00"),
        ("monthly", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
        ("monthly", "2028-02-29T12:00:00", "2028-03-01T00:00:00"),
    ],
)
def test_a_period_ends_at_midnight_utc(reset: str, now: str, end: str) -> None:
    """Days end at midnight, weeks on Monday, months on the first."""
    found = period_end(reset, datetime.fromisoformat(f"{now}+00:00"))  # type: ignore[arg-type]

    assert found == datetime.fromisoformat(f"{end}+00:00")


@given(
    st.sampled_from(["daily", "weekly", "monthly"]),
    st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - bounds are naive
)
def test_a_period_always_ends_later_and_within_its_length(reset: str, now: datetime) -> None:
    """The end is in the future, and no further away than the period is long."""
    end = period_end(reset, now)  # type: ignore[arg-type]

    assert end is not None
    assert timedelta(0) < end - now <= timedelta({"daily": 1, "weekly": 7, "monthly": 31}[reset])


def refuse_to_cap(life: Life) -> None:
    """Make OpenRouter refuse every change of a key."""
    life.app.state.faults.add(Fault("before", "PATCH", "/keys/", status=403))


async def test_a_key_that_could_not_be_capped_is_capped_before_the_next_is_made(life: Life) -> None:
    """What it went on spending counts, too."""
    life.change(key=CARRY)
    await life.rotate()
    former = await life.held()
    refuse_to_cap(life)
    await life.failure(life.rotate())
    life.app.state.faults.clear()
    life.spend(former, "50")

    await life.rotate()

    assert await spendable(life) == 0


async def test_a_key_that_cannot_be_capped_does_not_keep_others_alive(life: Life) -> None:
    """What is due is revoked, and what is to come is scheduled, though the budget could not be settled."""
    await life.rotate()
    await life.rotate()
    due = life.superseded.hash
    life.change(key=CARRY)
    refuse_to_cap(life)
    await life.failure(life.rotate())
    life.later(days=1)

    await life.failure(life.retire())

    assert due in life.openrouter.deleted


async def test_a_kept_key_has_its_full_limit_back(life: Life) -> None:
    """After a removal nobody would give it the rest when the period ends."""
    life.change(key=CARRY)
    await life.rotate()
    life.spend(await life.held(), "30")
    await life.rotate()

    await life.remove(None)

    assert (await life.held()).limit == 50


async def test_a_key_of_another_account_does_not_count_as_capped(life: Life) -> None:
    """No such key is also what another account answers, after the management key was exchanged."""
    life.change(key=CARRY)
    await life.rotate()
    refuse_to_cap(life)
    await life.failure(life.rotate())
    life.app.state.faults.clear()
    account = life.openrouter.accounts[0]
    life.openrouter.accounts.append(Account("user_other", ["elsewhere"], account.management_keys))
    account.management_keys = set()

    await life.failure(life.retire())

    assert life.superseded.capped is False


async def test_a_ledger_that_an_audit_writes_anew_knows_of_the_budget(life: Life) -> None:
    """The key's limit is smaller than the rotation's, because former keys had spent the rest."""
    life.change(key=CARRY, overlap=timedelta(0))
    await life.rotate()
    life.spend(await life.held(), "30")
    await life.rotate()
    life.store.value = None
    life.later(hours=2)

    await life.audit(repair=True)

    current = life.ledger.current
    assert current is not None
    assert current.budget is not None
    assert (current.budget.carried, current.budget.ends_at) == (Decimal(30), datetime(2027, 1, 1, tzinfo=UTC))
