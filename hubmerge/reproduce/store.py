"""The results of units: a small JSON file each in WORK/units, complete or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.durable import try_lock, write_atomic
from hubmerge.errors import Busy
from hubmerge.reproduce.unit import Result, Unit, unit_key

FORMAT = 1
_MIXED_SUFFIX = "+older"


@dataclass(frozen=True)
class UnitRecord:
    """The result of one unit, the seconds it took, and the digest of the code that measured it."""

    key: str
    kind: str
    about: str
    code: str
    seconds: float
    steps: int
    result: Result


@dataclass(frozen=True)
class ResultStore:
    """The records in a WORK folder; `code` is the digest of the current measuring code."""

    folder: Path
    code: str

    @property
    def units_folder(self) -> Path:
        return self.folder / "units"

    def get(self, key: str) -> UnitRecord | None:
        """The record of a unit, by whatever code; None if there is no readable one."""
        try:
            content = json.loads((self.units_folder / f"{key}.json").read_bytes())
            return _record_from_json(key, content)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the unit runs again and replaces the file

    def records(self, units: Iterable[Unit], any_code: bool = False) -> dict[str, UnitRecord]:
        """The records of these units by key; those of other code only if `any_code`."""
        records = (self.get(unit.key) for unit in units)
        return {
            record.key: record
            for record in records
            if record and (any_code or record.code == self.code)
        }

    def put(
        self, unit: Unit, result: Result, seconds: float, inputs: Iterable[UnitRecord] = ()
    ) -> UnitRecord:
        """Store the result of a unit; the complete file is on disk when this returns.

        A result from `inputs` of other code gets a code of its own, as the current code might give
        another result.
        """
        is_current = all(record.code == self.code for record in inputs)
        code = self.code if is_current else f"{self.code}{_MIXED_SUFFIX}"
        record = UnitRecord(
            unit.key, unit.kind, unit.about, code, seconds, unit.steps, _json_round_trip(result)
        )
        self.units_folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            _record_to_json(unit, record), sort_keys=True, indent=1, ensure_ascii=False
        )
        write_atomic(self.units_folder / f"{unit.key}.json", f"{text}\n".encode(), mode=0o644)
        return record

    @contextmanager
    def lock_all(self) -> Iterator[None]:
        """Lock the folder for one runner; raises Busy while another one holds it."""
        with self._lock("run", shared=False):
            yield

    @contextmanager
    def lock_units(self, keys: Sequence[str]) -> Iterator[None]:
        """Lock some units, next to other runners with other units, such as jobs of an array.

        The folder may be shared by machines if its file system has locks, as NFS 4 and Lustre do.
        Raises Busy if another runner holds the folder or one of the units.
        """
        with ExitStack() as locks:
            locks.enter_context(self._lock("run", shared=True))
            for key in sorted(keys):
                locks.enter_context(self._lock(key, shared=False))
            yield

    @contextmanager
    def _lock(self, name: str, shared: bool) -> Iterator[None]:
        # Never deleted: another runner may have opened it and would lock a deleted file.
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if not try_lock(file, shared):
                what = "recipes" if name == "run" else f"unit {name}"
                raise Busy(
                    f"Another hubmerge runs {what} in {self.folder}.",
                    "Wait until it is done, or choose another folder with --work.",
                )
            yield


def _record_to_json(unit: Unit, record: UnitRecord) -> dict[str, Any]:
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


def _record_from_json(key: str, content: Mapping[str, Any]) -> UnitRecord:
    """The record in a file; raises ValueError if it is of another unit than the file's name."""
    if (content["format"], unit_key(content)) != (FORMAT, key):
        raise ValueError(key)
    return UnitRecord(
        key=key,
        kind=content["kind"],
        about=content["about"],
        code=content["code"],
        seconds=float(content["seconds"]),
        steps=int(content["steps"]),
        result=dict(content["result"]),
    )


def _json_round_trip(result: Result) -> Result:
    """The result as it will be read from disk, so that both ways give later units the same."""
    plain: Result = json.loads(json.dumps(result))
    return plain
