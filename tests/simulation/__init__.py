"""In-memory models of OpenRouter, the destinations and Prefect, which the real steps are run against."""
