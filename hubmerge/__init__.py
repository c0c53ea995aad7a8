"""hubmerge: turn the checkpoints people already have into better models."""

__version__ = "0.1.0"
