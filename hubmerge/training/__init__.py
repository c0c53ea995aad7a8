"""Training: row order, batches, learning-rate schedule, early stopping, and the training loop."""
