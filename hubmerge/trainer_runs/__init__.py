"""Runs that were trained elsewhere: what Trainer and those built on it leave behind."""
