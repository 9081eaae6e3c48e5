"""A host that dies, on PostgreSQL."""

from tests.e2e.conftest import on_postgresql
from tests.e2e.test_dead_host import *  # noqa: F403

pytestmark = on_postgresql
