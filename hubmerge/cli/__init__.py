"""The command line: one short module per verb, which parses, calls a flow and prints."""

from __future__ import annotations


def main() -> None:
    """Run `hubmerge`."""
    import signal
    import sys

    from hubmerge.cli.app import app

    # Asked to end, it ends as after Ctrl-C: what is finished is published, the rest can be redone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no "±" still gets a table
    app()
