"""What deploy/ says is done here, outside of a container: each step, command and setting, read from its files."""
