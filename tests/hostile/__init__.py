"""Services that lie, and people who type anything."""
