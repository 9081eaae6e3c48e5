"""The blocks and the work pool that the first rotation requires."""

from __future__ import annotations

from pydantic import SecretStr

from sandbox.stack import POOL, WORKER_TYPE

CONNECTION = "openrouter"
SECRET = "openrouter-api-key"  # the block's name in prefect.yaml


async def prepare(management_key: SecretStr, base_url: str | None = None) -> None:
    """Create or update the work pool, the connection and the destination of the example rotation.

    Args:
        management_key: The OpenRouter management key.
        base_url: The base URL of OpenRouter's API; the real one by default.
    """
    from prefect import get_client
    from prefect.blocks.system import Secret
    from prefect.client.schemas.actions import WorkPoolCreate

    import blocks
    from tasks.model.keys import NOT_YET_ROTATED

    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type=WORKER_TYPE), overwrite=True)
    for block in blocks.BLOCKS:
        await block.aregister_type_and_schema()
    where = {} if base_url is None else {"base_url": base_url}
    connection = blocks.OpenRouterCredentials(management_key=management_key, **where)
    await connection.asave(CONNECTION, overwrite=True)
    try:
        await Secret.aload(SECRET)
    except ValueError:
        await Secret(value=NOT_YET_ROTATED).asave(SECRET)
