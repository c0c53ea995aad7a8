"""Choosing the step of each expert for a merge, on validation data and within a budget."""
