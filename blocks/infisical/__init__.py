"""Infisical: the login, the client, one secret; imports the rest of `blocks`."""
