"""Merge methods as plain maths, and the engine that streams checkpoints through them."""
