"""OpenRouter's key management: its keys, its client, the connection block; imports the rest of `blocks`."""
