"""A fleet loses no event and no automation's action when Redis or the database fails."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.server.events import actions
from prefect.server.events.schemas.automations import Automation, EventTrigger, TriggeredAction
from prefect.server.schemas.core import BlockDocument
from prefect.server.utilities.messaging import create_consumer, create_publisher
from prefect.server.utilities.messaging.memory import MemoryMessage
from prefect.settings import PREFECT_MESSAGING_BROKER, PREFECT_MESSAGING_CACHE, temporary_settings
from prefect_redis.client import clear_cached_clients, get_async_redis_client
from redis.exceptions import ConnectionError as RedisConnectionError

from flows.event_streams import first_needed, trim
from flows.services import OutageError, keep_actions_pending_during_outages
from sandbox.redis import Redis
from sandbox.stack import CHECKOUT, Process, read_settings
from tests.e2e.conftest import needs_redis

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
    client, now = get_async_redis_client(), datetime.now(UTC)
    first, in_hand, last = [await client.xadd("events", {"data": each}) for each in ("first", "in hand", "last")]
    await client.xgroup_create("events", "reactive-triggers", id="0")
    await client.xreadgroup("reactive-triggers", "killed", {"events": ">"}, count=3)
    await client.xack("events", "reactive-triggers", first, last)

    await trim(client, "events", now)

    assert [message_id for message_id, _ in await client.xrange("events")] == [in_hand, last]


@needs_redis
async def test_what_every_group_has_dealt_with_is_deleted(redis: RestartableRedis) -> None:
    """Otherwise Redis would fill up; the last message that the slowest group has received stays, and all later ones."""
    assert redis.process.is_alive
    client, now = get_async_redis_client(), datetime.now(UTC)
    ids = [await client.xadd("events", {"data": "event"}) for _ in range(5)]
    for group, count in (("reactive-triggers", 5), ("event-persister", 3)):
        await client.xgroup_create("events", group, id="0")
        await client.xreadgroup(group, "consumer", {"events": ">"}, count=count)
        await client.xack("events", group, *ids[:count])

    await trim(client, "events", now)

    assert [message_id for message_id, _ in await client.xrange("events")] == ids[2:]


@needs_redis
async def test_prefect_itself_deletes_nothing(redis: RestartableRedis) -> None:
    """Prefect's own trimming would also delete pending messages; fleet.env effectively disables it."""
    assert redis.process.is_alive
    consumer: Any = create_consumer("events", group="reactive-triggers")

    assert consumer.trim_every > timedelta(days=365)


@pytest.mark.parametrize(
    ("groups", "kept_since"),
    [
        pytest.param([], NOW - timedelta(minutes=5), id="without groups"),
        pytest.param([NOW - timedelta(hours=1), NOW], NOW - timedelta(hours=1), id="the slowest group decides"),
        pytest.param([NOW - timedelta(days=9), NOW], NOW - timedelta(days=1), id="a group that nobody uses any more"),
    ],
)
def test_how_long_messages_are_kept(groups: list[datetime], kept_since: datetime) -> None:
    """The slowest group decides, but a stream without groups, or with an abandoned one, must not fill Redis."""
    delivered = [{"name": str(number), "last-delivered-id": message_id(moment)} for number, moment in enumerate(groups)]

    assert first_needed(delivered, {group["name"]: None for group in delivered}, NOW) == message_id(kept_since)


def message_id(moment: datetime) -> str:
    """Return the id of the first message that Redis receives at a given time."""
    return f"{int(moment.timestamp() * 1000)}-0"


class DyingClient:
    """A publisher's Redis client whose server dies immediately before the event is written."""

    def __init__(self, server: RestartableRedis) -> None:
        self._server = server

    async def xadd(self, *_: object) -> None:
        """Kill the server, and raise the error of a lost connection."""
        self._server.process.kill()
        raise RedisConnectionError("Connection closed by server.")


NOT_FOUND, DOWN, FOUND = httpx.Response(404), httpx.Response(500), httpx.Response(200, json={})


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons of the actions that fail permanently, with the patches of `flows.services` applied."""
    reasons: list[str] = []

    async def fail(_: actions.Action, __: TriggeredAction, reason: str) -> None:
        reasons.append(reason)

    monkeypatch.setattr(actions.Action, "fail", fail)
    reason_from_response = actions.ExternalDataAction.reason_from_response
    monkeypatch.setattr(actions.ExternalDataAction, "reason_from_response", reason_from_response)
    keep_actions_pending_during_outages()
    return reasons


async def test_an_action_is_done_again_after_the_api_failed(failed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's API responds with 500 while the database is down; the action must stay pending."""
    monkeypatch.setattr(actions.ExternalDataAction, "orchestration_client", _answering(DOWN))

    with pytest.raises(OutageError):
        await _act()

    assert failed == []


async def test_an_action_is_done_again_after_redis_failed(failed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading an action's block emits an event through Redis; if that fails, the action must stay pending."""
    monkeypatch.setattr(actions.ExternalDataAction, "orchestration_client", _answering(FOUND))
    monkeypatch.setattr(BlockDocument, "model_validate", lambda _: None)
    monkeypatch.setattr(actions, "_load_block_from_block_document", _without_redis)

    with pytest.raises(OutageError):
        await _act()

    assert failed == []


async def test_an_action_that_cannot_succeed_fails_for_good(failed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry cannot bring a deleted block back."""
    monkeypatch.setattr(actions.ExternalDataAction, "orchestration_client", _answering(NOT_FOUND))

    await _act()

    assert len(failed) == 1


def _answering(response: httpx.Response) -> Any:
    class Client:
        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

        async def read_block_document_raw(self, _: UUID) -> httpx.Response:
            return response

    async def orchestration_client(*_: object) -> Client:
        return Client()

    return orchestration_client


async def _without_redis(_: object) -> None:
    raise RedisConnectionError("Connection closed by server.")


async def _act() -> None:
    webhook = actions.CallWebhook(block_document_id=uuid4())
    trigger = EventTrigger(
        posture="Reactive", expect={"key-rotation.rotation.completed"}, threshold=1, within=timedelta(0)
    )
    requested = TriggeredAction(
        automation=Automation(name="call", trigger=trigger, actions=[webhook]),
        triggered=datetime.now(UTC),
        triggering_labels={},
        triggering_event=None,
        action=webhook,
    )
    async with actions.consumer() as handle:
        await handle(MemoryMessage(requested.model_dump_json().encode(), {}))
