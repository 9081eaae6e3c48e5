"""Keys that no run can revoke any more, and what a person does about them, following the message."""

from __future__ import annotations

from uuid import uuid4

import pytest

from blocks.errors import ConfigurationError
from flows.show.rotation_page import as_markdown
from flows.write_off_key import check_write_off
from sandbox.server import Fault
from tasks.model.events import Event
from tasks.model.records import Superseded, Unresolved
from tasks.model.room import MAX_LEDGER_BYTES, largest_size
from tasks.model.written_off import MAX_REASON, MAX_WRITTEN_OFF
from tests.tasks.conftest import FakeWorld


async def superseded_in_a_deleted_connection(world: FakeWorld) -> Superseded:
    """Return a key of a deleted connection, which the rotation has left; its overlap has ended."""
    await world.rotate()
    world.connections = {"openrouter", "second"}
    world.change(connection="second")
    await world.rotate()
    world.connections = {"second"}
    world.later(hours=24)
    return world.superseded


async def test_a_deleted_connection_ends_healthy_by_what_its_message_says(world: FakeWorld) -> None:
    """Given a key that only a deleted connection could revoke, after its write-off the next runs complete."""
    former = await superseded_in_a_deleted_connection(world)
    sentence = await world.failure(world.retire())

    message = await world.write_off(former.label)
    after = [await world.retire(), await world.rotate()]

    assert "its connection openrouter was deleted" in sentence
    assert "write the key off with write-off-key" in sentence
    assert message.startswith(f"Written off: {former.label} was not revoked")
    assert after[0] == "Nothing was due; no superseded keys."
    assert after[1].startswith("Rotated")
    assert former.hash not in world.ledger.hashes()


async def test_a_deleted_connection_ends_healthy_when_it_is_made_again(world: FakeWorld) -> None:
    """Given that a person follows the other advice and creates the connection again, the key is revoked."""
    former = await superseded_in_a_deleted_connection(world)
    await world.failure(world.retire())
    world.connections = {"openrouter", "second"}

    await world.retire()

    assert former.hash in world.openrouter.deleted


async def test_a_deleted_workspace_ends_healthy_by_what_its_message_says(world: FakeWorld) -> None:
    """Given a workspace that was deleted with the key in it, after its write-off the next runs complete."""
    workspace = world.other_workspace()
    world.change(key={"workspace_id": workspace})
    await world.rotate()
    former = world.ledger.current
    world.delete_workspace(workspace)
    world.change(key={"workspace_id": None})
    await world.rotate()
    world.later(hours=24)
    sentence = await world.failure(world.retire())
    assert former is not None

    await world.write_off(former.label)

    assert "the workspace was deleted, or the connection belongs to another account" in sentence
    assert "write the key off with write-off-key" in sentence
    assert await world.retire() == "Nothing was due; no superseded keys."


async def test_a_lost_create_in_a_deleted_connection_ends_healthy_by_what_its_message_says(world: FakeWorld) -> None:
    """Given a create of unknown outcome that nobody can search for, the note gives the label for write-off-key."""
    lost, former_run = uuid4(), world.time
    await world.rotate()
    lost_entry = Unresolved(run_id=lost, connection="gone", since=former_run)
    world.store.value = world.ledger.model_copy(update={"unresolved": (lost_entry,)}).to_json()
    world.later(hours=1)
    await world.retire()
    noted = " ".join(world.notes)

    await world.write_off(str(lost))
    await world.retire()

    assert f"write the key off: run write-off-key with the label {lost}" in noted
    assert world.ledger.unresolved == ()
    assert world.notes == []


async def test_a_key_that_can_be_revoked_is_not_written_off(world: FakeWorld) -> None:
    """Given a connection that can still revoke the key, nothing is changed, and the message says which flow to run."""
    await world.rotate()
    await world.rotate()
    before = world.everything()

    sentence = await world.failure(world.write_off(world.superseded.label))

    assert "can be revoked: run retire/retire" in sentence
    assert world.everything() == before


async def test_a_key_that_is_gone_is_not_written_off(world: FakeWorld) -> None:
    """Given a key that a person deleted, retire drops it from the ledger, so no write-off is needed."""
    await world.rotate()
    await world.rotate()
    world.openrouter.delete_key(world.key(world.superseded.hash))

    sentence = await world.failure(world.write_off(world.superseded.label))

    assert "does not exist any more: run retire/retire" in sentence


async def test_nothing_is_written_off_while_openrouter_is_down(world: FakeWorld) -> None:
    """Given a failure that may pass, it is unknown whether the key can be revoked."""
    await world.rotate()
    await world.rotate()
    world.app.state.faults.add(Fault("before", "GET", "/keys/", status=503))

    await world.failure(world.write_off(world.superseded.label))

    assert len(world.ledger.superseded) == 1


async def test_the_current_key_is_not_written_off(world: FakeWorld) -> None:
    """Given the label of the current key, the message says that the next rotation supersedes it."""
    await world.rotate()
    current = world.ledger.current
    assert current is not None

    sentence = await world.failure(world.write_off(current.label))

    assert "The current key can be written off only once it is superseded" in sentence


async def test_ledger_event_and_artifact_say_what_was_written_off_and_why(world: FakeWorld) -> None:
    """The key, the reason, the time and the run can be looked up later."""
    former = await superseded_in_a_deleted_connection(world)
    run_id = uuid4()

    message = await world.write_off(former.label, "account closed, ticket 7", run_id=run_id)

    (entry,) = world.ledger.written_off
    run = world.open()
    await run.load()
    page = as_markdown(run, message)
    told = [payload for event, payload in world.events if event is Event.KEY_WRITTEN_OFF]
    assert (entry.hash, entry.reason, entry.at, entry.by) == (
        former.hash,
        "account closed, ticket 7",
        world.time,
        run_id,
    )
    assert told == [{"rotation": "checkout", **entry.as_payload()}]
    assert f"- `{former.label}` of the connection openrouter" in page
    assert f"by run {run_id}: account closed, ticket 7" in page


async def test_a_retry_of_a_write_off_that_is_done_does_nothing(world: FakeWorld) -> None:
    """Given that the process was killed after it wrote the ledger, the Retry reports the same and completes."""
    former = await superseded_in_a_deleted_connection(world)
    run_id = uuid4()
    first = await world.write_off(former.label, run_id=run_id)
    before = world.everything()

    assert await world.write_off(former.label, run_id=run_id, attempt=2) == first
    assert world.everything() == before


async def test_a_key_that_turns_up_after_it_was_written_off_is_an_orphan(world: FakeWorld) -> None:
    """Given that the connection was created again, an audit finds the key, and its repair deletes it if unused."""
    former = await superseded_in_a_deleted_connection(world)
    await world.write_off(former.label)
    world.connections = {"openrouter", "second"}

    report = await world.audit(repair=True)

    assert [finding.key_hash for finding in report.findings if finding.repaired] == [former.hash]
    assert former.hash in world.openrouter.deleted


async def test_a_removed_rotation_is_gone_once_its_last_key_is_written_off(world: FakeWorld) -> None:
    """Given a removal that waits for a key that no run can revoke, its write-off completes the removal."""
    former = await superseded_in_a_deleted_connection(world)
    await world.failure(world.remove(world.time))

    await world.write_off(former.label)

    assert world.store.value is None
    assert Event.ROTATION_REMOVED in [event for event, _ in world.events]


async def test_the_ledger_remembers_the_newest_and_always_has_room(world: FakeWorld) -> None:
    """Given a full ledger, a key can still be written off, because the oldest entries are dropped."""
    former = await superseded_in_a_deleted_connection(world)
    many = [
        former.model_copy(update={"hash": f"{number:064}", "label": f"sk-or-v1-{number:015}"}) for number in range(9)
    ]
    ledger = world.ledger.model_copy(update={"superseded": tuple(many)})
    while largest_size(ledger) > MAX_LEDGER_BYTES:
        many.pop()
        ledger = world.ledger.model_copy(update={"superseded": tuple(many)})
    world.store.value = ledger.to_json()

    for key in many:
        await world.write_off(key.label, "x" * MAX_REASON)

    assert largest_size(world.ledger) <= MAX_LEDGER_BYTES
    assert world.ledger.superseded == ()
    assert [entry.hash for entry in world.ledger.written_off] == [key.hash for key in many[-MAX_WRITTEN_OFF:]]


@pytest.mark.parametrize(
    ("confirm_name", "reason", "field"),
    [
        ("another", "gone", "confirm_name"),
        ("checkout", " \n ", "reason"),
        ("checkout", None, "reason"),
        ("checkout", f"sk-or-v1-{'5' * 64}", "reason"),
    ],
)
def test_what_is_not_meant_so_is_refused(confirm_name: str, reason: object, field: str) -> None:
    """The name must be confirmed, and the reason must be neither empty nor a secret."""
    with pytest.raises(ConfigurationError, match=rf"^{field}: .* Nothing was changed\.$"):
        check_write_off("checkout", confirm_name, reason)


def test_the_reason_is_one_line_of_a_bounded_length() -> None:
    """The ledger has little room, and the reason is a single line of a list."""
    assert check_write_off("checkout", "checkout", "a\nb" + "c" * 500) == ("a b" + "c" * 500)[:MAX_REASON]


def test_the_reason_is_no_markup() -> None:
    """The rotation's artifact shows it."""
    assert check_write_off("checkout", "checkout", "see [this](https://evil.example)") == (
        "see (this)(https: //evil.example)"
    )


async def test_a_deleted_destination_block_does_not_stop_retirement(world: FakeWorld) -> None:
    """Given a block that was deleted after the current key was published to it, the former key ends as planned."""
    await world.rotate()
    await world.rotate()
    former = world.superseded.hash
    world.deleted_destinations = {"vault-secret/checkout"}
    world.later(hours=24)

    message = await world.retire()

    assert message.startswith("Revoked")
    assert former in world.openrouter.deleted
    assert "The block vault-secret/checkout was deleted" in " ".join(world.notes)


async def test_a_deleted_destination_block_ends_healthy_by_what_its_message_says(world: FakeWorld) -> None:
    """Given a rotation that names a deleted block, it continues once the rotation names another one instead."""
    await world.rotate()
    world.deleted_destinations = {"vault-secret/checkout"}
    sentence = await world.failure(world.rotate())

    world.change(destinations=["vault-secret/another"])
    message = await world.rotate()

    assert sentence.startswith("rotation.destinations: the block vault-secret/checkout does not exist")
    assert message.startswith("Rotated")
    assert world.openrouter.is_live((await world.held()).secret)


async def test_a_destination_that_cannot_be_read_still_stops_retirement(world: FakeWorld) -> None:
    """Given a store that is only down, it is unknown which key its consumers read, so none is revoked."""
    await world.rotate()
    await world.rotate()
    former = world.superseded.hash
    world.vault.sealed = True
    world.later(days=1)

    await world.failure(world.retire())

    assert former in world.openrouter.keys
