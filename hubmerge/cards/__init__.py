"""Model cards and figures, told from manifests and scores alone."""
