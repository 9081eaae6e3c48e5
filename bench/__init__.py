"""Measurements of speed and calls, side by side in one run: `make bench`."""
