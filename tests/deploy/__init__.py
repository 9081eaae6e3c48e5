"""Run the steps, commands and settings in the files of deploy/ without containers."""
