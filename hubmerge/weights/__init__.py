"""Weights on disk: read tensor by tensor, subtracted from a base, written atomically."""
