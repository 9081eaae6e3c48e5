"""Where consumers may read a key of a rotation, as the ledger and the deployments say."""

from __future__ import annotations

from collections.abc import Iterable

from blocks.errors import ConfigurationError
from tasks.model.records import Superseded
from tasks.world.run import Run


async def where_keys_are_read(run: Run, keys: Iterable[Superseded]) -> set[str]:
    """Collect the destinations at which consumers may read one of some keys of this rotation.

    Args:
        run: The run, which has loaded the ledger.
        keys: The superseded keys that are about to end.

    Returns:
        The destinations that the current key was published to, and those that the deployment names since. If one of the
        keys was left elsewhere, also those of a copied deployment whose rotation kept its name; but of a rotation that
        was removed the keys end there, too.

    Raises:
        ServiceError: Prefect's API failed.
    """
    published = run.ledger.served.destinations if run.ledger.served else ()
    if not run.ledger.removed and any(key.left_at for key in keys):
        return {*published, *await run.world.destinations_of(run.name)}
    try:
        return {*published, *(await run.world.deployed_rotation(run.name)).destinations}
    except ConfigurationError:
        # There is no deployment, or one that no run would accept.
        return {*published}
