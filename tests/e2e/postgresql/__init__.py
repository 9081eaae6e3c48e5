"""The tests of the core once more, on PostgreSQL: those of the module of the same name in tests/e2e."""
