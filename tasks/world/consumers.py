"""Where consumers may read a rotation's keys, and for how long, according to its ledger and the deployments."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from blocks.errors import ConfigurationError
from tasks.model.records import Superseded
from tasks.model.rotation import Rotation
from tasks.world.run import Run


async def where_keys_are_read(run: Run, keys: Iterable[Superseded]) -> set[str]:
    """Return the destinations at which consumers may read any of some keys of this rotation.

    Args:
        run: The run, which has loaded the ledger.
        keys: The superseded keys that are about to be revoked.

    Returns:
        The destinations to which the current key was published, and those that the deployment names now. If one of the
        keys is at a former place, or was in no ledger, so that its places are unknown, also those of any other
        deployment of this rotation, such as a copy; not so for a removed rotation, whose keys end there, too.

    Raises:
        ServiceError: Prefect's API failed.
    """
    published = run.ledger.served.destinations if run.ledger.served else ()
    if not run.ledger.removed and any(key.left_at or not key.fingerprint for key in keys):
        return {*published, *await run.world.destinations_of(run.name)}
    rotation = await deployed_rotation(run)
    return {*published, *(rotation.destinations if rotation else ())}


async def overlap_of(run: Run) -> timedelta:
    """Return how long a key of this rotation stays valid once it is superseded; the default without a deployment.

    Raises:
        ServiceError: Prefect's API failed.
    """
    rotation = await deployed_rotation(run)
    return rotation.overlap if rotation else Rotation.model_fields["overlap"].get_default()


async def deployed_rotation(run: Run) -> Rotation | None:
    """Return the rotation as it is deployed; `None` if it has no deployment, or one with invalid parameters.

    Raises:
        ServiceError: Prefect's API failed.
    """
    try:
        return await run.world.deployed_rotation(run.name)
    except ConfigurationError:
        return None
