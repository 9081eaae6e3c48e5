"""A model of the world (OpenRouter, destinations, Prefect), against which the real steps and flows run unchanged."""
