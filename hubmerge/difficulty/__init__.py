"""How hard examples are, and which of them a merge forgets."""
