"""Adopt an existing key, so that the rotation's first key replaces it."""

from __future__ import annotations

from collections.abc import Sequence

from blocks.errors import ConfigurationError, NotFoundError
from blocks.openrouter.keys import ApiKey
from tasks.model.keys import fingerprint, label_agrees, read_marker
from tasks.model.places import kept_places
from tasks.model.records import Current
from tasks.model.rotation import Rotation
from tasks.model.terms import Terms
from tasks.model.written_off import searchable_text
from tasks.world.account import guardrail_of
from tasks.world.ports import KeyReader
from tasks.world.run import Run


async def find_adoptable(run: Run, rotation: Rotation) -> Current | None:
    """Check the key that a rotation names in `adopt`, without writing anything.

    Args:
        run: The run, which has read its destinations.
        rotation: The rotation.

    Returns:
        The key as the ledger will record it; `None` if there is nothing to adopt (any more).

    Raises:
        ConfigurationError: The key does not exist in this account, belongs to another rotation, or a destination holds
            another key; nothing was created.
        ServiceError: OpenRouter failed.
    """
    ledger = run.ledger
    if rotation.adopt is None or ledger.current is not None or rotation.adopt in ledger.hashes():
        return None
    openrouter: KeyReader = await run.world.connection(rotation.connection)
    try:
        key = await openrouter.get_key(rotation.adopt)
    except NotFoundError:
        if ledger.superseded:
            # Not the first rotation: the key was adopted before the ledger was lost, and has been revoked since.
            run.note("The key to adopt does not exist any more.")
            return None
        raise ConfigurationError(
            "rotation.adopt: the connection's account has no key with this hash. Nothing was created."
        ) from None
    mark = read_marker(key.name)
    if owner := mark.rotation if mark else await rotation_that_records(run, key.hash):
        raise ConfigurationError(
            f"rotation.adopt: the key {key.label} belongs to the rotation {owner} already. Nothing was created."
        )
    await run.read_destinations_once(rotation.destinations)
    holders = _holders(run, rotation.destinations, key)
    return Current(
        hash=key.hash,
        label=key.label,
        fingerprint=fingerprint(run.contents[holders[0]].value) or "" if holders else "",
        connection=rotation.connection,
        workspace_id=key.workspace_id,
        since=key.created_at,
        destinations=tuple(holders),
        places=kept_places(holders, run.places),
        terms=Terms.of(key, await guardrail_of(run, rotation.connection, key.hash) if rotation.key.inherit else None),
    )


async def rotation_that_records(run: Run, key_hash: str) -> str | None:
    """Return the rotation whose ledger contains a key; `None` if there is none.

    Raises:
        ServiceError: Prefect's API failed.
    """
    # As text, so that the keys in an unreadable ledger count, too.
    async for name, value in run.world.ledgers():
        if name != run.name and key_hash in searchable_text(value):
            return name
    return None


async def adopt(run: Run, rotation: Rotation) -> None:
    """Adopt the key that a rotation names in `adopt`, unless it has a current key already.

    Args:
        run: The run, which has read its destinations.
        rotation: The rotation.

    Raises:
        ConfigurationError: The key cannot be adopted; nothing was created.
        ServiceError: OpenRouter failed.
    """
    if key := await find_adoptable(run, rotation):
        await run.write(run.ledger.adopted(key))
        run.note(f"The key {key.label} was adopted: it is superseded by this rotation's first key.")


def _holders(run: Run, destinations: Sequence[str], key: ApiKey) -> list[str]:
    agreement = {name: label_agrees(key.label, run.contents[name].value) for name in destinations}
    others = [name for name, agrees in agreement.items() if agrees is False and not _holds_a_successor(run, name)]
    if others:
        raise ConfigurationError(
            f"rotation.adopt: another key than {key.label} is in {', '.join(others)}. Nothing was created."
        )
    holders = [name for name, agrees in agreement.items() if agrees]
    if len({fingerprint(run.contents[name].value) for name in holders}) > 1:
        raise ConfigurationError("rotation.adopt: the destinations hold different keys. Nothing was created.")
    return holders


def _holds_a_successor(run: Run, name: str) -> bool:
    # The ledger was lost after the adopted key was replaced; the keys that were found again are its successors.
    secret = run.contents[name].value
    return any(label_agrees(key.label, secret) for key in run.ledger.superseded)
