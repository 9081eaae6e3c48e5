"""The steps of the protocol, as Prefect tasks or as plain functions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from tasks.create import create_key, create_key_task
from tasks.ledger import Superseded
from tasks.publish import publish, publish_task
from tasks.revoke import revoke_key, revoke_key_task
from tasks.rotation import Rotation
from tasks.run import NewKey, Run, VerifiedKey
from tasks.verify import verify_key, verify_key_task


class Steps(NamedTuple):
    """How each step of the protocol is done."""

    create_key: Callable[[Run, Rotation], Awaitable[NewKey]]
    verify_key: Callable[[Run, Rotation, NewKey], Awaitable[VerifiedKey]]
    publish: Callable[[Run, VerifiedKey, str], Coroutine[Any, Any, None]]
    revoke_key: Callable[[Run, Superseded, Sequence[str]], Awaitable[None]]


async def _publish_as_task(run: Run, key: VerifiedKey, destination: str) -> None:
    await publish_task.with_options(task_run_name=f"publish {destination}")(run, key, destination)


PLAIN = Steps(create_key, verify_key, publish, revoke_key)
"""The steps themselves, without Prefect."""

AS_TASKS = Steps(create_key_task, verify_key_task, _publish_as_task, revoke_key_task)
"""The steps as the dashboard shows them."""
