"""The only rooms that talk to a Hub: which one, what a name means there, fetching, publishing."""
