"""What made the results of a recipe."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Collection

from hubmerge import __version__
from hubmerge.reproduce.code_digest import versions
from hubmerge.reproduce.store import Record
from hubmerge.results import Provenance


def provenance(records: Collection[Record]) -> Provenance:
    """Where these records come from; several digests of code mean that some are older."""
    return Provenance(
        hubmerge=__version__,
        code=" ".join(sorted({record.code for record in records})),
        versions={"python": platform.python_version(), **versions()},
        units=dict(sorted(Counter(record.kind for record in records).items())),
        seconds=round(sum(record.seconds for record in records), 1),
        machine=f"{sys.platform}, {platform.machine()}, {os.cpu_count()} CPUs",
    )
