"""The events of a history: a rule for each step of a person, a run or a service."""
