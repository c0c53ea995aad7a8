"""Code that goes out with exported mixtures, to run where there is no hubmerge: it imports none."""
