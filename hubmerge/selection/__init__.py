"""Choosing the step of each expert for a merge: on validation, within a budget, with its noise."""
