"""Compare an account with all ledgers, and repair what is beyond doubt; imports `world`, `model` and `blocks`."""
