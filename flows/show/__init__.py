"""What people read: state messages, artifacts and the overview; imports `tasks` and `blocks`."""
