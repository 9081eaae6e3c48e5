"""Failures that are tried again, on PostgreSQL."""

from tests.e2e.conftest import on_postgresql
from tests.e2e.test_tries import *  # noqa: F403

pytestmark = on_postgresql
