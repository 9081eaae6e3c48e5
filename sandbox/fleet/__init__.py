"""A fleet under faults, on loopback: `make fleet`."""

import sandbox  # noqa: F401 - isolates this process from the user's Prefect before a module here imports it
