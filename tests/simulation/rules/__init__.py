"""What may happen in a history: a rule for each step that a person, a run or a service may take."""
