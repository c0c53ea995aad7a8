"""`python -m hubmerge.server --data FOLDER` serves a data folder; `lease` starts it this way."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubmerge.errors import HubmergeError
from hubmerge.server.process import TINY_CLIP_FOLDER, serve


def main() -> int:
    """Serve until a signal stops it."""
    options = _options()
    try:
        seed_from = None if options.no_seed else TINY_CLIP_FOLDER
        serve(options.data, options.port, options.leased, seed_from)
    except HubmergeError as error:
        print(error.message, error.hint, sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hubmerge.server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the repositories")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument(
        "--leased", action="store_true", help="exit when the last client has finished"
    )
    parser.add_argument("--no-seed", action="store_true", help="leave an empty Hub empty")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
