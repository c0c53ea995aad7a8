"""Models: a checkpoint folder opened as modules that see images and read words."""
