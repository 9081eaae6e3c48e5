"""Services that send false answers, and people who type anything."""
