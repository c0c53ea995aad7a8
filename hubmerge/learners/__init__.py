"""A model at a task: what it is shown, what it loses, what it answers."""
