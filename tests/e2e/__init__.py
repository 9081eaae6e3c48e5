"""Rotations through a real Prefect server, and through a real worker where the promise needs one."""
