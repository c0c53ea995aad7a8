"""Tasks: what is classified, from which data, in which words, measured how."""
