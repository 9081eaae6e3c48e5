"""Measurements of speed and calls, side by side in one run: `make bench`."""

import sandbox  # noqa: F401 - isolates this process from the user's Prefect before a module here imports it
