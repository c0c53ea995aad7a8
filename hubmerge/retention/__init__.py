"""Which step revisions to keep under a budget, why, and what dropping the others costs."""
