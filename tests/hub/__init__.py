"""The rooms that talk to a Hub, against a real one and a proxy that breaks on demand."""
