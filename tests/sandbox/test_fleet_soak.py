"""A soak of a fleet notices a worker that leaks."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random

from sandbox.fleet.kills import KINDS
from sandbox.fleet.soak import JUDGED, YOUNG, Growth, kinds_to_kill

LOADING = [(50.0 + number, 5) for number in range(YOUNG)]


def test_a_worker_that_leaks_is_noticed() -> None:
    """Its memory and its sockets are compared over its own life, whatever the other workers use."""
    flat = [(100.0, 20)] * JUDGED
    leaking = [(100.0 + number, 20 + number) for number in range(JUDGED)]

    memory, sockets, judged = Growth({1: LOADING + flat, 2: LOADING + leaking}).worst()

    assert memory > 0.15
    assert sockets > 15
    assert judged == 2


def test_a_worker_that_loads_its_modules_is_not_judged() -> None:
    """Each one grows in its first minutes, and those that were started again are young."""
    assert Growth({1: LOADING}).worst() == (0.0, 0.0, 0)


def test_each_kind_is_killed_equally_often() -> None:
    """Otherwise an hour might pass without the database being killed."""
    killed = Counter(islice(kinds_to_kill(Random(1)), 4 * len(KINDS)))  # noqa: S311 - reproducible

    assert killed == dict.fromkeys(KINDS, 4)
