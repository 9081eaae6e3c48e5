"""Rotations through a real Prefect server, and through a real worker if the promise requires one."""
