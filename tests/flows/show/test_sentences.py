"""The messages of runs for the person on call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from blocks.errors import (
    ConfigurationError,
    DestinationError,
    ForbiddenError,
    KeyRotationError,
    LedgerError,
    OverwrittenError,
    UnreachableError,
)
from flows.show.sentences import failed
from tasks.model.ledger import Ledger
from tasks.model.records import Current, MadeKey, Pending, Superseded
from tasks.model.tries import Next
from tasks.world.run import LOOK

NOW = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
HELP = "Help: docs/how-to/troubleshooting.md#a-destination-does-not-hold-the-key"
ERROR = DestinationError("Vault is sealed.")


def made(label: str) -> dict[str, Any]:
    """Return the fields of a key that a rotation made."""
    return MadeKey(
        hash=label, label=label, fingerprint=label, made_by=uuid4(), connection="openrouter", workspace_id=None
    ).model_dump()


CURRENT = Current(**made("new"), since=NOW, destinations=("secret/checkout",))
FORMER = Superseded(**made("old"), since=NOW, revoke_at=NOW + timedelta(hours=1))
PENDING = Pending(
    run_id=uuid4(),
    connection="openrouter",
    destinations=("secret/checkout",),
    intended_at=NOW,
    key=MadeKey(**made("next")),
)


def test_a_failed_run_names_step_error_live_key_and_what_to_do() -> None:
    """The person on call needs these four facts."""
    said = failed(ERROR, "publish", Ledger(current=CURRENT, pending=PENDING))

    assert said == (
        "Could not publish the new key: Vault is sealed. The key new is live, and the new key next was created; no key "
        f"that a destination holds was revoked. Retry is safe; press it once the destination works. {HELP}"
    )


def test_a_run_that_could_not_look_says_that_nothing_was_changed() -> None:
    """The most frequent failure is a service that is down when the run starts."""
    error = UnreachableError("Vault at https://vault.example could not be reached.")
    error.block = "vault-credentials/checkout"

    assert failed(error, LOOK, Ledger(current=CURRENT), Next(1, NOW)) == (
        "Could not read the ledger and the destinations: Vault at https://vault.example could not be reached (block "
        "vault-credentials/checkout). Nothing was changed. The key new is live. Retry is safe; press it once the "
        "service can be reached. The run is tried again automatically at 2026-12-01 03:30 UTC (try 1). "
        "Help: docs/how-to/troubleshooting.md#a-service-cannot-be-reached"
    )


def test_a_failure_of_several_causes_leads_to_the_entry_of_each() -> None:
    """Each destination may have failed for a different reason."""
    error = DestinationError.combine([UnreachableError("One is away."), ForbiddenError("One is closed.")])

    assert failed(error, "publish", None).endswith(
        " Help: docs/how-to/troubleshooting.md#a-service-cannot-be-reached, "
        "docs/how-to/troubleshooting.md#a-permission-is-missing"
    )


def test_a_failed_removal_tells_what_is_left() -> None:
    """A removed rotation has no live key, and the message does not deny that keys were revoked."""
    said = failed(ERROR, "revoke-key", Ledger(superseded=(FORMER,), removed=True))

    assert said == (
        "Could not revoke the superseded keys: Vault is sealed. The rotation is removed; superseded: old until "
        f"2026-12-01 04:30 UTC. Retry is safe; press it once the destination works. {HELP}"
    )


def test_a_failure_before_the_ledger_was_read_changed_nothing() -> None:
    """Without a ledger, the message can name no key."""
    said = failed(KeyRotationError("Prefect's API failed."), "", None)

    assert said == (
        "Prefect's API failed. No key was changed. Retry is safe; press it once the cause is repaired. "
        "Help: docs/how-to/troubleshooting.md#an-unexpected-error"
    )


def test_bad_input_is_the_one_sentence_that_names_the_field() -> None:
    """Only the link to its entry in the troubleshooting page is added."""
    said = failed(ConfigurationError("rotation.name: it is no name. Nothing was created."), "", None)

    assert said == (
        "rotation.name: it is no name. Nothing was created. Help: docs/how-to/troubleshooting.md#a-setting-is-refused"
    )


def test_a_ledger_that_cannot_be_read_is_the_one_sentence_that_says_what_to_do() -> None:
    """A Retry would fail in the same way, so it is not advised."""
    said = failed(LedgerError("The ledger was written by a newer version: upgrade this worker."), "", None)

    assert said == (
        "The ledger was written by a newer version: upgrade this worker. "
        "Help: docs/how-to/troubleshooting.md#the-ledger-cannot-be-read-or-written"
    )


def test_an_overwritten_destination_is_not_said_to_hold_a_live_key_nor_sent_to_retry() -> None:
    """The destination may hold a key that the emergency itself has revoked, and a Retry would not publish again."""
    error = OverwrittenError("The current key new is not in secret/checkout. Start a new run.")

    assert failed(error, "revoke-key", Ledger(current=CURRENT)) == (
        "The current key new is not in secret/checkout. Start a new run. The key new is live. "
        "Help: docs/how-to/troubleshooting.md#a-destination-was-overwritten"
    )
