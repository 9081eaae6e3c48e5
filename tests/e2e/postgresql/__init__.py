"""The core tests again, on PostgreSQL: those of the module with the same name in tests/e2e."""
