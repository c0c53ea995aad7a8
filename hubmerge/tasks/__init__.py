"""Tasks: their data, splits, examples, prompts, labels and metrics."""
