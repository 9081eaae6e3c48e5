"""The documentation's commands and programs, run exactly as they are written on the pages."""
