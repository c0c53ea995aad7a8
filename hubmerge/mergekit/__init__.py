"""Configurations of mergekit, as merges of ours and back."""
