"""The overview and the check of connections, on PostgreSQL."""

from tests.e2e.conftest import on_postgresql
from tests.e2e.test_overview import *  # noqa: F403

pytestmark = on_postgresql
