"""A blocking call in a thread that can be abandoned without waiting for the thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures.thread import _threads_queues  # joined when the interpreter exits
from contextvars import ContextVar

import pytest

from blocks.threads import THREAD_NAME, OwnThreads, in_own_thread
from tests.threads import Hanging, ends_while

seen: ContextVar[str] = ContextVar("seen", default="")


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """A call that does not return before the end of the test."""
    with Hanging() as made:
        yield made


async def test_a_call_returns_its_answer_and_raises_its_error() -> None:
    """The thread changes neither the result nor the error."""

    def refuse(why: str) -> None:
        raise LookupError(why)

    assert await in_own_thread(sum, [1, 2]) == 3
    with pytest.raises(LookupError, match="no such place"):
        await in_own_thread(refuse, "no such place")


async def test_a_call_sees_the_context_and_does_not_change_it() -> None:
    """A run's logger and settings come from its context."""

    def look() -> str:
        found = seen.get()
        seen.set("changed")
        return found

    seen.set("of this run")

    assert await in_own_thread(look) == "of this run"
    assert seen.get() == "of this run"


async def test_each_call_has_a_daemon_thread_of_its_own() -> None:
    """Hanging calls delay neither the next call nor the exit of the interpreter."""
    first, second = [await in_own_thread(threading.current_thread) for _ in range(2)]

    assert first is not second
    assert first.daemon
    assert first.name == THREAD_NAME


async def give_up(hanging: Hanging) -> None:
    """Abandon a call as soon as it hangs."""
    call = asyncio.create_task(in_own_thread(hanging))
    while hanging.thread is None:  # noqa: ASYNC110 - it is set by another thread
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def test_the_loop_ends_although_a_call_that_was_given_up_hangs(hanging: Hanging) -> None:
    """Its thread is joined neither by the loop nor at the interpreter's exit."""
    assert ends_while(hanging, lambda: give_up(hanging))


async def look_up(hanging: Hanging) -> None:
    """Abandon the lookup of a host's name as soon as it hangs."""
    asyncio.get_running_loop().set_default_executor(OwnThreads())
    lookup = asyncio.create_task(asyncio.get_running_loop().getaddrinfo("openrouter.example", 443))
    while hanging.thread is None:  # noqa: ASYNC110 - it is set by another thread
        await asyncio.sleep(0.01)
    lookup.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lookup


def test_the_loop_ends_although_a_name_is_still_looked_up(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a lookup that hangs, when its call has been given up, then the loop ends, and so does the interpreter."""
    monkeypatch.setattr("socket.getaddrinfo", hanging)

    assert ends_while(hanging, lambda: look_up(hanging))
    assert hanging.thread not in _threads_queues


def test_an_answer_that_comes_after_the_loop_has_ended_is_dropped(
    hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing waits for the answer any more, and the thread must not raise because of that."""
    assert ends_while(hanging, lambda: give_up(hanging))
    assert hanging.thread is not None

    hanging.go_on.set()
    hanging.thread.join()

    assert not caplog.records
