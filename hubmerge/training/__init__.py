"""Training an expert: which steps are kept, how the learning rate goes, and the loop."""
