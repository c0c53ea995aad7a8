"""The provenance of results: code, library versions, machine and time."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Collection

from hubmerge import __version__
from hubmerge.reproduce.code_digest import library_versions
from hubmerge.reproduce.store import UnitRecord
from hubmerge.results import Provenance


def make_provenance(records: Collection[UnitRecord]) -> Provenance:
    """The provenance of these records; several code digests mean that some records are older."""
    return Provenance(
        hubmerge=__version__,
        code=" ".join(sorted({record.code for record in records})),
        versions={"python": platform.python_version(), **library_versions()},
        units=dict(sorted(Counter(record.kind for record in records).items())),
        seconds=round(sum(record.seconds for record in records), 1),
        machine=f"{sys.platform}, {platform.machine()}, {os.cpu_count()} CPUs",
    )
