"""How a file of delimited text is read: its encoding, its delimiter, and whether its rows fit."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from hubmerge.errors import DataError, raise_together
from hubmerge.refs import printable

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHER_ENCODINGS = ("cp1252", "latin-1")  # tried in this order where a file is not UTF-8
_DELIMITERS = (",", ";", "\t", "|")
_TRIED_ROWS = 200  # by which the delimiter is found
_MAX_LISTED = 5  # rows of a file that an error lists
_BLOCK = 1 << 20
_HINT = (
    "Mend these lines: a field with the delimiter in it must be in double quotes. If the delimiter "
    'is another one, write it under `data:` in the task\'s YAML, such as `delimiter: ";"`.'
)


@dataclass(frozen=True)
class CsvFormat:
    """The encoding and the delimiter of a file, and whether the former was guessed."""

    encoding: str
    delimiter: str
    is_guessed: bool = False


def find_csv_format(
    path: Path, encoding: str | None = None, delimiter: str | None = None
) -> CsvFormat:
    """The format of a file, with what is given, found in the file where it is not.

    A file without a mark is UTF-8, or else of the encoding of Western Windows. Its delimiter is
    that of its name, comma or tab, if that divides all rows alike; else the one that divides them
    into most columns. Raises DataError for rows that do not have as many fields as the first one,
    and for bytes that are not of the given encoding.
    """
    status = path.stat()
    return _find_format(path, status.st_size, status.st_mtime_ns, encoding, delimiter)


def format_note(path: Path, found: CsvFormat) -> str | None:
    """What to say of a file whose encoding was guessed, else None."""
    if not found.is_guessed:
        return None
    return (
        f"{printable(path.name)} is not UTF-8 and is read as {found.encoding}; `encoding:` under "
        "`data:` in a task's YAML names another one."
    )


@lru_cache(maxsize=64)
def _find_format(
    path: Path, size: int, modified: int, encoding: str | None, delimiter: str | None
) -> CsvFormat:
    found, is_guessed = (encoding, False) if encoding else _find_encoding(path)
    delimiter = delimiter or _find_delimiter(path, found)
    _check_rows(path, found, delimiter)
    return CsvFormat(found, delimiter, is_guessed)


def _find_encoding(path: Path) -> tuple[str, bool]:
    """The encoding of a file, and whether it is a guess."""
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if marked is not None:
        return marked, False
    if _can_decode(path, "utf-8"):
        return "utf-8", False
    return next(name for name in _OTHER_ENCODINGS if _can_decode(path, name)), True


def _can_decode(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as file:
        try:
            while block := file.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _find_delimiter(path: Path, encoding: str) -> str:
    default = "\t" if path.suffix.lower() == ".tsv" else ","
    columns = {delimiter: _column_count(path, encoding, delimiter) for delimiter in _DELIMITERS}
    if columns[default] > 1:
        return default
    best = max(_DELIMITERS, key=lambda delimiter: columns[delimiter])
    return best if columns[best] > 1 else default


def _column_count(path: Path, encoding: str, delimiter: str) -> int:
    """The number of fields of the first rows, 0 if they differ."""
    counts = {len(row) for _, row in islice(_rows(path, encoding, delimiter), _TRIED_ROWS)}
    return counts.pop() if len(counts) == 1 else 0


def _check_rows(path: Path, encoding: str, delimiter: str) -> None:
    expected, problems, more = None, list[str](), 0
    for line, row in _rows(path, encoding, delimiter):
        expected = expected or len(row)
        if len(row) != expected and len(problems) < _MAX_LISTED:
            problems.append(
                f"{printable(str(path))} has {len(row)} fields in line {line}, and {expected} in "
                "its first."
            )
        elif len(row) != expected:
            more += 1
    if more:
        problems.append(f"{more} more lines of it have another number of fields.")
    raise_together(DataError, problems, _HINT)


def _rows(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line; raises DataError."""
    csv.field_size_limit(1 << 30)
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except (csv.Error, UnicodeError, LookupError) as error:
        raise DataError(
            f"{printable(str(path))} cannot be read as {printable(encoding)}: {error}.",
            "Save it as UTF-8, or write its `encoding:` under `data:` in the task's YAML.",
        ) from error
