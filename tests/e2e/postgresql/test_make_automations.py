"""Making automations, on PostgreSQL."""

from tests.e2e.conftest import on_postgresql
from tests.e2e.test_make_automations import *  # noqa: F403

pytestmark = on_postgresql
