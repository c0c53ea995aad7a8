"""Which examples are hard, and which of them a merge forgets."""
