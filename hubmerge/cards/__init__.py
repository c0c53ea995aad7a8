"""Model cards and figures, rendered from manifests and scores alone."""
