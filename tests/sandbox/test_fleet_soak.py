"""The soak of a fleet detects a worker that leaks memory or sockets."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random

from sandbox.fleet.kills import KINDS
from sandbox.fleet.soak import JUDGED, YOUNG, Growth, kinds_to_kill

LOADING = [(50.0 + number, 5) for number in range(YOUNG)]


def test_a_worker_that_leaks_is_noticed() -> None:
    """Growth is measured for each worker separately, so the other workers cannot hide it."""
    flat = [(100.0, 20)] * JUDGED
    leaking = [(100.0 + number, 20 + number) for number in range(JUDGED)]

    memory, sockets, judged = Growth({1: LOADING + flat, 2: LOADING + leaking}).worst()

    assert memory > 0.15
    assert sockets > 15
    assert judged == 2


def test_a_worker_that_loads_its_modules_is_not_judged() -> None:
    """A worker grows while it loads modules, so a recently restarted one must not count as a leak."""
    assert Growth({1: LOADING}).worst() == (0.0, 0.0, 0)


def test_each_kind_is_killed_equally_often() -> None:
    """Otherwise an hour might pass without a kill of the database."""
    killed = Counter(islice(kinds_to_kill(Random(1)), 4 * len(KINDS)))  # noqa: S311 - reproducible

    assert killed == dict.fromkeys(KINDS, 4)
