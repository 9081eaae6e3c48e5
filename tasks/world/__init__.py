"""The ports to everything outside of a run, and Prefect behind them; imports `tasks.model` and `blocks`."""
