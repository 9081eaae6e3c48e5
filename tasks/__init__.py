"""The four steps of a rotation, as the dashboard shows them; imports `key`, `world`, `model` and `blocks`."""
