"""The command line: one short module per verb, which parses, calls a flow and prints."""

from __future__ import annotations


def main() -> None:
    """Run `hubmerge`."""
    from hubmerge.cli.app import app

    app()
