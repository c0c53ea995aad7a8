"""Code that is copied into exported mixtures of experts; it must not import hubmerge."""
