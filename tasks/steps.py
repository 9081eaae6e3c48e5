"""The steps of the protocol, as Prefect tasks or as plain functions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from tasks.create import create_key
from tasks.model.records import Superseded
from tasks.model.rotation import Rotation
from tasks.publish import publish
from tasks.revoke import revoke_key
from tasks.verify import verify_key
from tasks.world.run import NewKey, Run, VerifiedKey
from tasks.world.secrecy import secret_task


class Steps(NamedTuple):
    """The implementations of the protocol's steps."""

    create_key: Callable[[Run, Rotation], Awaitable[NewKey]]
    verify_key: Callable[[Run, Rotation, NewKey], Awaitable[VerifiedKey]]
    publish: Callable[[Run, VerifiedKey, str], Coroutine[Any, Any, None]]
    revoke_key: Callable[[Run, Superseded, Sequence[str]], Awaitable[None]]


_publish_task = secret_task("publish")(publish)


async def _publish_as_task(run: Run, key: VerifiedKey, destination: str) -> None:
    await _publish_task.with_options(task_run_name=f"publish {destination}")(run, key, destination)


PLAIN = Steps(create_key, verify_key, publish, revoke_key)
"""The steps themselves, without Prefect."""

AS_TASKS = Steps(
    secret_task("create-key")(create_key),
    secret_task("verify-key")(verify_key),
    _publish_as_task,
    secret_task("revoke-key")(revoke_key),
)
"""The steps as the dashboard shows them."""
