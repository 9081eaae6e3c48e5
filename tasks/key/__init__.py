"""What the steps need to know about keys: terms, budget, account lists, unrecorded keys, usage.

Imports `tasks.world`, `tasks.model` and `blocks`.
"""
