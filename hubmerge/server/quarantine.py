"""The objects of a push, held outside of the repository until they are checked.

Commits can be read by their SHA, so what is refused must never be in the repository, whatever its
refs are; git does the same.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from dulwich.object_store import DiskObjectStore
from dulwich.objects import ShaFile

from hubmerge.durable import rename_into


class Quarantine:
    """A folder for one pack, which may refer to objects of the repository; removed at the end."""

    def __init__(self, repository: Path, spool: Path) -> None:
        self._target = repository / "objects"
        self._folder = Path(tempfile.mkdtemp(dir=spool))
        for name in ("info", "pack"):
            (self._folder / name).mkdir()
        (self._folder / "info" / "alternates").write_text(f"{self._target.resolve()}\n")
        self._store = DiskObjectStore(str(self._folder), fsync_object_files=True)

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def receive(self, read: Callable[[int], bytes], read_some: Callable[[int], bytes]) -> None:
        """Read a pack from a client; raises what reading a malformed pack may raise."""
        self._store.add_thin_pack(read, read_some)

    def objects(self) -> Iterator[ShaFile]:
        """Every object of the pack."""
        for pack in self._store.packs:
            yield from pack.iterobjects()

    def release(self) -> None:
        """Move the pack into the repository, its index last: without it, nobody reads the pack."""
        self._store.close()
        for ending in ("pack", "idx"):
            for file in (self._folder / "pack").glob(f"*.{ending}"):
                rename_into(file, self._target / "pack" / file.name)
