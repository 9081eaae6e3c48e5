"""Infisical: login, client and secret; may import the rest of `blocks`."""
