"""Where consumers may read a key of a rotation, as the ledger and the deployments say."""

from __future__ import annotations

from collections.abc import Iterable

from blocks.errors import ConfigurationError
from tasks.model.records import Superseded
from tasks.world.run import Run


async def where_keys_are_read(run: Run) -> list[str]:
    """Collect the destinations at which consumers may read a key of this rotation.

    Args:
        run: The run, which has loaded the ledger.

    Returns:
        The destinations that the current key was published to, and those that the deployment names since.

    Raises:
        ServiceError: Prefect's API failed.
    """
    published = run.ledger.served.destinations if run.ledger.served else ()
    try:
        named = (await run.world.deployed_rotation(run.name)).destinations
    except ConfigurationError:
        # There is no deployment, or one that no run would accept.
        named = []
    return sorted({*published, *named})


async def where_others_publish(run: Run, keys: Iterable[Superseded]) -> set[str]:
    """Collect the destinations that any deployment names for this rotation, if one of some keys was left elsewhere.

    A deployment that was copied, and whose rotation kept its name, publishes keys of the same ledger elsewhere.

    Args:
        run: The run.
        keys: The superseded keys that are about to end.

    Returns:
        The destinations; none for a rotation that was removed, whose keys end wherever they are.

    Raises:
        ServiceError: Prefect's API failed.
    """
    if run.ledger.removed or not any(key.left_at for key in keys):
        return set()
    return await run.world.destinations_of(run.name)
