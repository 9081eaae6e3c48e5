"""A rotation with `carry_budget` does not grant a budget twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.openrouter_account import Account
from sandbox.server import Fault
from tasks.model.events import Event
from tasks.model.terms import period_end
from tests.tasks.conftest import FakeWorld

CARRY = {"carry_budget": True}


async def spendable(world: FakeWorld) -> Decimal:
    """Return what all live keys together may still spend."""
    left = [world.openrouter.remaining(key) for key in world.openrouter.live_keys()]
    assert None not in left
    return sum(filter(None, left), Decimal(0))


async def test_without_it_a_rotation_starts_a_fresh_budget(world: FakeWorld) -> None:
    """This is OpenRouter's default, and may be what a person wants."""
    await world.rotate()
    world.spend(await world.held(), "30")

    await world.rotate()

    assert await spendable(world) == 70


async def test_the_new_key_starts_with_what_remained(world: FakeWorld) -> None:
    """The former and the new key together can spend exactly what the former one had left."""
    world.change(key=CARRY)
    await world.rotate()
    former = await world.held()
    world.spend(former, "30.123457")

    await world.rotate()

    held = await world.held()
    assert held.limit == Decimal("19.876543")
    assert world.openrouter.remaining(former) == 0
    assert await spendable(world) == Decimal("19.876543")


async def test_two_rotations_in_one_period_carry_everything_over(world: FakeWorld) -> None:
    """The third key starts with what the first two left."""
    world.change(key=CARRY)
    for _ in range(3):
        await world.rotate()
        world.spend(await world.held(), "10")

    assert await spendable(world) == 20


async def test_what_the_former_key_spends_during_the_rotation_counts_too(world: FakeWorld) -> None:
    """The new key's rest is computed once the former key is capped and can spend no more."""
    world.change(key=CARRY)
    await world.rotate()
    former = await world.held()
    world.spend(former, "10")
    world.app.state.faults.add(Fault("before", "PATCH", "/keys/", status=403))
    await world.failure(world.rotate(run_id=(run := world.open().identity.id)))
    world.app.state.faults.clear()
    world.spend(former, "5")

    await world.rotate(run_id=run, attempt=2)

    assert await spendable(world) == 35


async def test_the_full_limit_comes_back_when_the_period_ends(world: FakeWorld) -> None:
    """A run is scheduled for the first of the month, and restores the current key's full limit."""
    world.change(key=CARRY, overlap=timedelta(days=60))
    await world.rotate()
    former = await world.held()
    world.spend(former, "30")
    await world.rotate()
    held = await world.held()
    month_ends = datetime(2027, 1, 1, tzinfo=UTC)
    planned = month_ends in world.retirements

    world.time = month_ends
    await world.retire()

    assert planned
    assert held.limit == 50
    assert world.openrouter.remaining(former) == 0
    assert Event.BUDGET_RESTORED in [event for event, _ in world.events]


async def test_a_rotation_in_the_next_period_carries_nothing_of_the_last(world: FakeWorld) -> None:
    """This holds even if the run at the end of the period did not take place."""
    world.change(key=CARRY)
    await world.rotate()
    world.spend(await world.held(), "30")
    await world.rotate()
    world.time = datetime(2027, 1, 2, tzinfo=UTC)
    world.spend(await world.held(), "5")

    await world.rotate()

    assert (await world.held()).limit == 45


async def test_a_limit_that_is_never_reset_is_carried_over_for_good(world: FakeWorld) -> None:
    """Without a reset, the full limit never returns."""
    world.change(key={**CARRY, "limit_reset": "none"})
    await world.rotate()
    world.spend(await world.held(), "30")

    await world.rotate()
    world.later(days=400)
    await world.retire()

    assert (await world.held()).limit == 20


async def test_a_raised_limit_counts_at_once(world: FakeWorld) -> None:
    """The spending so far is subtracted from the rotation's new limit."""
    world.change(key=CARRY)
    await world.rotate()
    world.spend(await world.held(), "30")
    world.change(key={"limit_usd": 100})

    await world.rotate()

    assert (await world.held()).limit == 70


async def test_apply_settings_keeps_what_is_spent(world: FakeWorld) -> None:
    """A limit raised within a period raises the rest by the same amount."""
    world.change(key=CARRY)
    await world.rotate()
    world.spend(await world.held(), "30")
    await world.rotate()
    world.change(key={"limit_usd": 60})

    await world.apply()

    assert (await world.held()).limit == 30


async def test_an_exhausted_budget_makes_a_key_that_works_and_may_not_spend(world: FakeWorld) -> None:
    """A key without budget is valid: the rotation succeeds, and the consumer still gets 402."""
    world.change(key=CARRY)
    await world.rotate()
    world.spend(await world.held(), "50")

    await world.rotate()

    assert world.use(await world.held()) == 402


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
    """Days end at midnight, weeks on Monday, months on the first; all in UTC, as at OpenRouter."""
    found = period_end(reset, datetime.fromisoformat(f"{now}+00:00"))  # type: ignore[arg-type]

    assert found == datetime.fromisoformat(f"{end}+00:00")


@given(
    st.sampled_from(["daily", "weekly", "monthly"]),
    st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - bounds are naive
)
def test_a_period_always_ends_later_and_within_its_length(reset: str, now: datetime) -> None:
    """The end is in the future, and at most one period away."""
    end = period_end(reset, now)  # type: ignore[arg-type]

    assert end is not None
    assert timedelta(0) < end - now <= timedelta({"daily": 1, "weekly": 7, "monthly": 31}[reset])


def refuse_to_cap(world: FakeWorld) -> None:
    """Make OpenRouter refuse every change of a key."""
    world.app.state.faults.add(Fault("before", "PATCH", "/keys/", status=403))


async def test_a_key_that_could_not_be_capped_is_capped_before_the_next_is_made(world: FakeWorld) -> None:
    """What the former key has spent since its failed cap counts, too."""
    world.change(key=CARRY)
    await world.rotate()
    former = await world.held()
    refuse_to_cap(world)
    await world.failure(world.rotate())
    world.app.state.faults.clear()
    world.spend(former, "50")

    await world.rotate()

    assert await spendable(world) == 0


async def test_a_key_that_cannot_be_capped_does_not_keep_others_alive(world: FakeWorld) -> None:
    """Revocations and scheduled retirements take place although the budget could not be carried over."""
    await world.rotate()
    await world.rotate()
    due = world.superseded.hash
    world.change(key=CARRY)
    refuse_to_cap(world)
    await world.failure(world.rotate())
    world.later(days=1)

    await world.failure(world.retire())

    assert due in world.openrouter.deleted


async def test_a_kept_key_has_its_full_limit_back(world: FakeWorld) -> None:
    """After a removal, no run could restore its limit at the end of the period."""
    world.change(key=CARRY)
    await world.rotate()
    world.spend(await world.held(), "30")
    await world.rotate()

    await world.remove(None)

    assert (await world.held()).limit == 50


async def test_a_key_of_another_account_does_not_count_as_capped(world: FakeWorld) -> None:
    """After the management key was replaced, another account answers 404 for the key as well."""
    world.change(key=CARRY)
    await world.rotate()
    refuse_to_cap(world)
    await world.failure(world.rotate())
    world.app.state.faults.clear()
    account = world.openrouter.accounts[0]
    world.openrouter.accounts.append(Account("user_other", ["elsewhere"], account.management_keys))
    account.management_keys = set()

    await world.failure(world.retire())

    assert world.superseded.capped is False


async def test_a_ledger_that_an_audit_writes_anew_knows_of_the_budget(world: FakeWorld) -> None:
    """The key's limit is lower than the rotation's, because former keys had spent the difference."""
    world.change(key=CARRY, overlap=timedelta(0))
    await world.rotate()
    world.spend(await world.held(), "30")
    await world.rotate()
    world.store.value = None
    world.later(hours=2)

    await world.audit(repair=True)

    current = world.ledger.current
    assert current is not None
    assert current.budget is not None
    assert (current.budget.carried, current.budget.ends_at) == (Decimal(30), datetime(2027, 1, 1, tzinfo=UTC))
