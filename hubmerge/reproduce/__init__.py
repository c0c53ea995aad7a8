"""Recipes: a plan of small idempotent units that an engine runs, and results made from them."""
