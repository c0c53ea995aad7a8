"""The command line: a short module for each command that parses, calls a flow and prints."""

from __future__ import annotations


def main() -> None:
    """The entry point of `hubmerge`."""
    import os
    import signal
    import sys

    from hubmerge.cli.app import make_app

    # Done at the import of libraries, and not needed here: pydantic reads the metadata of every
    # installed package to find plugins, and the threads of numpy spin before they sleep.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    # SIGTERM ends the process as Ctrl-C does, through the same cleanup.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # terminals without "±" still show tables
    make_app(sys.argv[1:])()
