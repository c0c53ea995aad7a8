"""Learners: a model with a task. They prepare examples and compute losses and predictions."""
