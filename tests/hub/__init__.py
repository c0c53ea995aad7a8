"""Tests of hubmerge.hub against a real Hub, behind a proxy that fails on demand."""
