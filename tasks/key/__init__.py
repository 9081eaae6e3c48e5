"""What the next key is, and keys that were never recorded; imports `tasks.world`, `tasks.model` and `blocks`."""
