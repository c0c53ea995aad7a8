"""Recipes: a plan of small idempotent units, run by an engine, told as results."""
