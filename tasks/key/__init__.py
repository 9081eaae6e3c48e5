"""Choose the terms of the next key, and find unrecorded keys; imports `tasks.world`, `tasks.model` and `blocks`."""
