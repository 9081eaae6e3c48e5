"""Wrong versions of the protocol's order, from the intent to the revocation."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

import tasks.audit.compare
import tasks.audit.repair
import tasks.create
import tasks.key.budget
import tasks.key.terms
import tasks.key.unrecorded
import tasks.life.due
import tasks.life.plan
import tasks.life.recover
import tasks.life.settings
import tasks.life.write_off
import tasks.model.decisions
import tasks.publish
import tasks.revoke
import tasks.verify
from blocks.errors import ServiceError
from tasks.key.terms import request_of
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded
from tasks.steps import PLAIN
from tasks.world.run import NewKey, Run, VerifiedKey
from tests.simulation.machine import Histories
from tests.simulation.mutants.mutant import (
    AT_ONCE,
    ROTATE,
    SIMPLE,
    Mutant,
    published_rightly,
)


async def _create_then_announce(run: Run, rotation: Any) -> Any:
    now = run.world.now()
    request = rotation.key.terms(now).request(rotation.key_name(run.identity.id, now))
    created = await (await run.world.connection(rotation.connection)).create_key(request)
    await tasks.create._announce(run, rotation, now)
    return created


async def _create_again(run: Run, rotation: Any) -> Any:
    now = run.world.now()
    openrouter = await run.world.connection(rotation.connection)
    request = request_of(await tasks.create._announce(run, rotation, now), rotation.key_name(run.identity.id, now))
    try:
        return await openrouter.create_key(request)
    except ServiceError:
        return await openrouter.create_key(request)


def _forget_earlier(self: Ledger, *args: Any, **how: Any) -> Ledger:
    right = published_rightly(self, *args, **how)
    return right.model_copy(update={"superseded": right.superseded[-1:]})


async def _believe_anything(run: Run, _rotation: Any, key: NewKey) -> VerifiedKey:
    await run.world.emit(Event.KEY_VERIFIED, run.name, **key.record.as_payload())
    return VerifiedKey(key.secret, key.record)


async def _revoke_before_publishing(run: Run, rotation: Any, key: VerifiedKey, steps: Any) -> None:
    current = run.ledger.current
    if current is not None:
        await (await run.world.connection(current.connection)).delete_key(current.hash)
    await _publish_everywhere(run, rotation, key, steps)


_publish_everywhere = ROTATE.publish_everywhere


async def _publish_to_the_first(run: Run, rotation: Any, key: VerifiedKey, steps: Any) -> None:
    await steps.publish(run, key, rotation.destinations[0])


async def _delete_without_ledger(run: Run, key: Superseded, _destinations: Any) -> None:
    await (await run.world.connection(key.connection)).delete_key(key.hash)


def _leaky_fingerprint(secret: Any) -> str | None:
    return None if secret is None else str(secret.get_secret_value())


async def _believe_the_first_look(run: Run, **_how: Any) -> None:
    if run.ledger.pending and run.ledger.pending.key is None:
        await run.write(run.ledger.dropped())


async def _publish_garbage_first(run: Run, key: VerifiedKey, name: str) -> None:
    place = await run.world.destination(name)
    await run.guard()
    await place.write_content(SecretStr("garbage"), await place.read_content(), {})
    run.contents.pop(name, None)
    await PLAIN.publish(run, key, name)


MUTANTS = [
    Mutant(
        "the intent is written after the create", tasks.create, "_create_or_settle", _create_then_announce, ("rotate",)
    ),
    Mutant("the create is retried blindly", tasks.create, "_create_or_settle", _create_again, ("rotate",)),
    Mutant(
        "a lost create is never looked for", tasks.life.recover, "settle_intent", _believe_the_first_look, ("rotate",)
    ),
    Mutant("a create that may still turn up is forgotten", Ledger, "left_unresolved", Ledger.dropped, ("rotate",)),
    Mutant(
        "the new key is published before it works",
        Histories,
        "steps",
        PLAIN._replace(verify_key=_believe_anything),
        ("rotate", "new_keys_are_late"),
    ),
    Mutant(
        "garbage is written into a destination before the key",
        Histories,
        "steps",
        PLAIN._replace(publish=_publish_garbage_first),
        ("rotate",),
    ),
    Mutant(
        "the write to a destination is not read back",
        tasks.publish,
        "_has_arrived",
        lambda *_: True,
        ("rotate",),
        AT_ONCE,
    ),
    Mutant(
        "the old key is revoked before the new one is published",
        ROTATE,
        "publish_everywhere",
        _revoke_before_publishing,
        ("rotate",),
    ),
    Mutant(
        "one destination is enough",
        ROTATE,
        "publish_everywhere",
        _publish_to_the_first,
        ("rotate",),
        {"names": ["secret/c", "vault-secret/a"]},
    ),
    Mutant("the superseded key's hash is overwritten", Ledger, "published", _forget_earlier, ("rotate",), SIMPLE),
    Mutant("a revoked key stays in the ledger", Ledger, "revoked", lambda self, _hash: self, ("rotate",), AT_ONCE),
    Mutant(
        "a revocation leaves no trace in the ledger",
        Histories,
        "steps",
        PLAIN._replace(revoke_key=_delete_without_ledger),
        ("rotate",),
        AT_ONCE,
    ),
    Mutant("the fingerprint is the key itself", tasks.create, "fingerprint", _leaky_fingerprint, ("rotate",)),
]
