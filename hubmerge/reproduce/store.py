"""What is known of units: one small JSON file each, whole or not there, under WORK/units."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.durable import try_lock, write_whole
from hubmerge.errors import Busy
from hubmerge.reproduce.unit import Result, Unit, key_of

FORMAT = 1
_MIXED = "+older"


@dataclass(frozen=True)
class Record:
    """What one unit came to, the seconds it took, and the digest of the code that measured it."""

    key: str
    kind: str
    about: str
    code: str
    seconds: float
    steps: int
    result: Result


@dataclass(frozen=True)
class Store:
    """The records of a WORK folder; `code` is the digest of the measuring code of today."""

    folder: Path
    code: str

    @property
    def units(self) -> Path:
        return self.folder / "units"

    def get(self, key: str) -> Record | None:
        """The record of a unit, whatever code measured it; None if there is none to be read."""
        try:
            said = json.loads((self.units / f"{key}.json").read_bytes())
            return _record(key, said)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # it is made again, and the file replaced

    def known(self, units: Iterable[Unit], any_code: bool = False) -> dict[str, Record]:
        """The records of these units by key; those of other code only if `any_code`."""
        found = (self.get(unit.key) for unit in units)
        return {one.key: one for one in found if one and (any_code or one.code == self.code)}

    def put(
        self, unit: Unit, result: Result, seconds: float, inputs: Iterable[Record] = ()
    ) -> Record:
        """Keep the result of a unit: it is on disk, whole, when this returns.

        Made from `inputs` of other code, it is not known to be what today's code would make of all.
        """
        pure = all(one.code == self.code for one in inputs)
        code = self.code if pure else f"{self.code}{_MIXED}"
        record = Record(unit.key, unit.kind, unit.about, code, seconds, unit.steps, _plain(result))
        self.units.mkdir(parents=True, exist_ok=True)
        said = json.dumps(_said(unit, record), sort_keys=True, indent=1, ensure_ascii=False)
        write_whole(self.units / f"{unit.key}.json", f"{said}\n".encode(), mode=0o644)
        return record

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only runner in the folder; raises Busy for as long as there is another."""
        with self._locked("run", shared=False):
            yield

    @contextmanager
    def claimed(self, keys: Sequence[str]) -> Iterator[None]:
        """Be the only one at these units, beside others that are at others, as jobs of an array.

        The folder may be shared by machines if its file system knows locks, as NFS 4 and Lustre do.
        Raises Busy if a runner has the whole folder or one of the units.
        """
        with ExitStack() as held:
            held.enter_context(self._locked("run", shared=True))
            for key in sorted(keys):
                held.enter_context(self._locked(key, shared=False))
            yield

    @contextmanager
    def _locked(self, name: str, shared: bool) -> Iterator[None]:
        # Never removed: another may have opened it, and would lock a file without a name.
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if not try_lock(file, shared):
                what = "recipes" if name == "run" else f"unit {name}"
                raise Busy(
                    f"Another hubmerge runs {what} in {self.folder}.",
                    "Wait until it is done, or name another folder with --work.",
                )
            yield


def _said(unit: Unit, record: Record) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": unit.kind,
        "about": unit.about,
        "params": dict(unit.params),
        "needs": {role: needed.key for role, needed in unit.needs.items()},
        "cpus": unit.cpus,
        "steps": unit.steps,
        "code": record.code,
        "seconds": round(record.seconds, 3),
        "result": record.result,
    }


def _record(key: str, said: Mapping[str, Any]) -> Record:
    """What a file says; raises ValueError if it speaks of another unit than its name says."""
    if (said["format"], key_of(said)) != (FORMAT, key):
        raise ValueError(key)
    return Record(
        key=key,
        kind=said["kind"],
        about=said["about"],
        code=said["code"],
        seconds=float(said["seconds"]),
        steps=int(said["steps"]),
        result=dict(said["result"]),
    )


def _plain(result: Result) -> Result:
    """The result as it will be read again, so that no run depends on which of the two it saw."""
    plain: Result = json.loads(json.dumps(result))
    return plain
