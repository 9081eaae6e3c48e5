"""The world as a model: OpenRouter, destinations and Prefect, for the real steps and flows to run against unchanged."""
