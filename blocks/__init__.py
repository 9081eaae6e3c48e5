"""Prefect blocks that hold the management credentials and name the destinations of API keys."""
