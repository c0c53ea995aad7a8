"""Merging: methods that are maths, and the one engine that streams checkpoints through them."""
