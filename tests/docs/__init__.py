"""The documentation's commands and programs, run as they stand on the page."""
