"""What people read: sentences, artifacts, the overview; imports `tasks` and `blocks`."""
