"""Services that return wrong responses, and arbitrary input from people."""
