"""A fleet loses no event and no automation's action when Redis or the database fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.server.api import server
from prefect.server.api.clients import OrchestrationClient
from prefect.server.events import actions
from prefect.server.events.schemas.automations import Automation, EventTrigger, TriggeredAction
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.schemas.core import BlockDocument
from prefect.server.utilities.messaging import create_consumer, create_publisher
from prefect.server.utilities.messaging.memory import MemoryMessage
from prefect.settings import PREFECT_MESSAGING_BROKER, PREFECT_MESSAGING_CACHE, temporary_settings
from prefect_redis.client import clear_cached_clients, get_async_redis_client
from redis.exceptions import ConnectionError as RedisConnectionError

from flows.event_actions import OutageError, keep_actions_pending_during_outages
from flows.event_streams import first_needed, trim
from sandbox.redis import Redis
from sandbox.stack import CHECKOUT, Process, read_settings
from tests.e2e.conftest import needs_redis

pytestmark = pytest.mark.slow
NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
FLEET = read_settings(CHECKOUT / "deploy" / "fleet.env")


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestartableRedis]:
    """A Redis that is configured for messaging as in fleet.env."""
    server = RestartableRedis(tmp_path)
    monkeypatch.setenv("PREFECT_REDIS_MESSAGING_URL", server.address(0))
    for name, value in FLEET.items():
        if name.startswith("PREFECT_REDIS_MESSAGING"):
            monkeypatch.setenv(name, value)
    messaging = {
        PREFECT_MESSAGING_BROKER: FLEET["PREFECT_SERVER_EVENTS_MESSAGING_BROKER"],
        PREFECT_MESSAGING_CACHE: FLEET["PREFECT_SERVER_EVENTS_MESSAGING_CACHE"],
    }
    with temporary_settings(messaging):
        yield server
    server.process.kill()


class RestartableRedis(Redis):
    """A Redis that a test can kill and restart."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.process: Process = self.start()

    async def restart(self) -> None:
        """Kill it, and restart it with its data."""
        self.process.kill()
        self.process = self.start()
        await clear_cached_clients()


@needs_redis
async def test_an_event_that_its_sender_repeats_after_redis_failed_is_not_taken_for_a_duplicate(
    redis: RestartableRedis,
) -> None:
    """If Redis fails between Prefect's check for duplicates and the write of an event, its retry must be delivered."""
    event: tuple[bytes, dict[str, Any]] = (b"{}", {"id": str(uuid4())})
    # given a server that publishes an event while Redis dies
    async with create_publisher("events", deduplicate_by="id") as publisher:
        publisher._client = DyingClient(redis)  # type: ignore[attr-defined]
        with pytest.raises(RedisConnectionError):
            await publisher.publish_data(*event)
    await redis.restart()

    # when its sender repeats the event
    async with create_publisher("events", deduplicate_by="id") as publisher:
        await publisher.publish_data(*event)

    # then it reaches the services
    assert await get_async_redis_client().xlen("events") == 1


@needs_redis
async def test_what_killed_services_had_in_hand_is_not_deleted(redis: RestartableRedis) -> None:
    """A message that a killed consumer has not acknowledged must stay, although later ones are acknowledged."""
    assert redis.process.is_alive
    client = get_async_redis_client()
    first, in_hand, last = [await client.xadd("events", {"data": each}) for each in ("first", "in hand", "last")]
    await client.xgroup_create("events", "reactive-triggers", id="0")
    await client.xreadgroup("reactive-triggers", "killed", {"events": ">"}, count=3)
    await client.xack("events", "reactive-triggers", first, last)

    await trim(client, "events", {"reactive-triggers"})

    assert [message_id for message_id, _ in await client.xrange("events")] == [in_hand, last]


@needs_redis
async def test_what_every_group_has_dealt_with_is_deleted(redis: RestartableRedis) -> None:
    """Otherwise Redis would fill up; the last message that the slowest group has received stays, and all later ones."""
    assert redis.process.is_alive
    client = get_async_redis_client()
    ids = [await client.xadd("events", {"data": "event"}) for _ in range(5)]
    for group, count in (("reactive-triggers", 5), ("event-persister", 3)):
        await client.xgroup_create("events", group, id="0")
        await client.xreadgroup(group, "consumer", {"events": ">"}, count=count)
        await client.xack("events", group, *ids[:count])

    await trim(client, "events", {"reactive-triggers", "event-persister"})

    assert [message_id for message_id, _ in await client.xrange("events")] == ids[2:]


@needs_redis
async def test_prefect_itself_deletes_nothing(redis: RestartableRedis) -> None:
    """Prefect's own trimming would also delete pending messages; fleet.env effectively disables it."""
    assert redis.process.is_alive
    consumer: Any = create_consumer("events", group="reactive-triggers")

    assert consumer.trim_every > timedelta(days=365)


@needs_redis
async def test_nothing_is_deleted_before_every_service_has_its_group(redis: RestartableRedis) -> None:
    """Where services start for the first time, or one of them failed to, the others must not delete its messages."""
    assert redis.process.is_alive
    client = get_async_redis_client()
    ids = [await client.xadd("events", {"data": "event"}) for _ in range(3)]
    await client.xgroup_create("events", "event-persister", id="0")
    await client.xreadgroup("event-persister", "consumer", {"events": ">"}, count=3)
    await client.xack("events", "event-persister", *ids)

    await trim(client, "events", {"event-persister", "reactive-triggers"})

    assert await client.xlen("events") == 3


@pytest.mark.parametrize(
    ("delivered", "pending", "kept_from"),
    [
        (["9-2", "10-1"], [None, None], "9-2"),
        (["9-2", "10-1"], [None, "3-0"], "3-0"),
        (["0-0", "10-1"], [None, None], "0-0"),
    ],
    ids=["the slowest group", "what is pending", "a group that has read nothing yet"],
)
def test_the_first_message_that_somebody_needs_is_kept(
    delivered: list[str], pending: list[str | None], kept_from: str
) -> None:
    """Ids are compared by their numbers, not as text."""
    groups = [{"name": str(number), "last-delivered-id": each} for number, each in enumerate(delivered)]

    assert first_needed(groups, {str(number): each for number, each in enumerate(pending)}) == kept_from


class DyingClient:
    """A publisher's Redis client whose server dies immediately before the event is written."""

    def __init__(self, server: RestartableRedis) -> None:
        self._server = server

    async def xadd(self, *_: object) -> None:
        """Kill the server, and raise the error of a lost connection."""
        self._server.process.kill()
        raise RedisConnectionError("Connection closed by server.")


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons of the actions that have failed for good, in a process of `flows.services`."""
    reasons: list[str] = []

    async def fail(_: actions.Action, __: TriggeredAction, reason: str) -> None:
        reasons.append(reason)

    async def succeed(*_: object) -> None:
        raise RedisConnectionError("Connection closed by server.")

    monkeypatch.setattr(actions.Action, "fail", fail)
    monkeypatch.setattr(actions.Action, "succeed", succeed)
    monkeypatch.setattr(actions.SendNotification, "act", actions.SendNotification.act)
    monkeypatch.setattr(actions.ExternalDataAction, "orchestration_client", _client)
    monkeypatch.setattr(server, "create_app", server.create_app)
    keep_actions_pending_during_outages()
    return reasons


async def _client(*_: object) -> OrchestrationClient:
    client = OrchestrationClient()
    client._http_client = httpx.AsyncClient(transport=Prefect.transport, base_url="http://prefect")  # type: ignore[assignment]
    return client


class Prefect:
    """What Prefect's API answers to an action."""

    transport: ClassVar[httpx.AsyncBaseTransport]

    @classmethod
    def answers(cls, status: int) -> None:
        """Answer every request with a status."""
        cls.transport = httpx.MockTransport(lambda _: httpx.Response(status, json={}))


async def test_an_action_is_done_again_after_the_api_failed(failed: list[str]) -> None:
    """Prefect's API answers 500 where the database is down."""
    Prefect.answers(500)

    with pytest.raises(OutageError):
        await _act(CALL)

    assert failed == []


async def test_a_notification_is_not_sent_without_its_text(failed: list[str]) -> None:
    """Prefect leaves out what it cannot read while the database is down."""
    Prefect.answers(500)
    notification = actions.SendNotification(block_document_id=uuid4(), subject="{{ flow_run.name }} failed", body="-")

    with pytest.raises(OutageError):
        await notification.render(_requested(notification))

    assert failed == []


async def test_an_action_is_done_again_after_redis_failed(failed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect emits an event when it loads an action's block, and that event passes through Redis."""
    Prefect.answers(200)
    monkeypatch.setattr(BlockDocument, "model_validate", lambda _: None)
    monkeypatch.setattr(actions, "_load_block_from_block_document", _without_redis)

    with pytest.raises(OutageError):
        await _act(CALL)

    assert failed == []


async def test_an_action_that_cannot_succeed_fails_for_good(failed: list[str]) -> None:
    """A block that was deleted does not come back by trying again."""
    Prefect.answers(404)

    await _act(CALL)

    assert len(failed) == 1


async def test_a_receiver_that_answers_500_is_notified_once(failed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have notified a person already, and others wait behind this action."""
    Prefect.answers(200)
    asked = _Refusing(httpx.Response(500, request=httpx.Request("POST", "http://receiver")))
    monkeypatch.setattr(actions.SendNotification, "_get_notification_block", asked.block)

    await _act(actions.SendNotification(block_document_id=uuid4(), subject="failed", body="-"))

    assert failed == ["Notification failed: HTTPStatusError"]
    assert asked.times == 1


async def test_an_action_that_was_done_while_redis_failed_is_not_done_again(
    failed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect tells of it through Redis, and would forget that it was done where it cannot."""
    Prefect.answers(200)
    asked = _Refusing(None)
    monkeypatch.setattr(actions.SendNotification, "_get_notification_block", asked.block)
    requested = _requested(actions.SendNotification(block_document_id=uuid4(), subject="failed", body="-"))
    with pytest.raises(RedisConnectionError):
        await _handle(requested)

    await _handle(requested)

    assert asked.times == 1
    assert failed == []


class _Refusing:
    """A receiver of notifications, with what it answers where that is an error."""

    def __init__(self, answer: httpx.Response | None) -> None:
        self.answer, self.times = answer, 0

    async def block(self, **_: object) -> Self:
        return self

    def raise_on_failure(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def notify(self, **_: object) -> None:
        self.times += 1
        if self.answer is not None:
            self.answer.raise_for_status()


async def _without_redis(_: object) -> None:
    raise RedisConnectionError("Connection closed by server.")


CALL = actions.CallWebhook(block_document_id=UUID(int=1))


def _requested(action: Any) -> TriggeredAction:
    trigger = EventTrigger(
        posture="Reactive", expect={"key-rotation.rotation.completed"}, threshold=1, within=timedelta(0)
    )
    run = {"prefect.resource.id": f"prefect.flow-run.{UUID(int=2)}"}
    event = ReceivedEvent(occurred=NOW, received=NOW, event="prefect.flow-run.Failed", resource=run, id=UUID(int=3))
    return TriggeredAction(
        automation=Automation(name="call", trigger=trigger, actions=[action]),
        triggered=NOW,
        triggering_labels={},
        triggering_event=event,
        action=action,
    )


async def _act(action: Any) -> None:
    await _handle(_requested(action))


async def _handle(requested: TriggeredAction) -> None:
    async with actions.consumer() as handle:
        await handle(MemoryMessage(requested.model_dump_json().encode(), {}))
