"""In-memory models of OpenRouter, the destinations and Prefect, against which the real steps run."""
