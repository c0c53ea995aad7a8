"""Where lm_eval has the YAML of a task, without reading all of its thousands of files as YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hubmerge.errors import DataError, UnknownName, UsageError
from hubmerge.refs import printable
from hubmerge.tasks.source import one_line

# Lines of YAML that define names: of a task or a group, and of tags, which may be a list.
_NAMED = re.compile(r"^[\"']?(task|group)[\"']?:[ \t]*[\"']?([^\s\"'#\[]+)", re.MULTILINE)
_TAGS = re.compile(r"^[\"']?tag[\"']?:((?:[ \t]*\n[ \t]*-[^\n]*)+|[^\n]*)", re.MULTILINE)
_INCLUDED = re.compile(r"^[\"']?include[\"']?:[ \t]*[\"']?([^\s\"'#\[]+)", re.MULTILINE)
_WORDS = re.compile(r"[^\s\"'#,\[\]]+")
_MOST_MEMBERS = 8  # of a group that are listed


def index_of(name: str, include_path: Path | None) -> Any:
    """A TaskManager of lm_eval that knows the task of that name, and few others.

    A task in the folder `include_path` comes before one of lm_eval. Raises DataError if there is no
    such folder, UnknownName for a name that is not known, and UsageError for the name of a group.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not include_path.is_dir():
            raise DataError(f"There is no folder {printable(str(include_path))}.")
        manager = _make_index(TaskManager, include_path)
        if name in manager.task_index:
            return _check_no_group(manager, name)
    shipped = _shipped_names()
    if name in shipped.files:
        manager = _make_index(TaskManager, shipped.files[name].parent)
        if name in manager.task_index:
            return _check_no_group(manager, name)
    if name in shipped.tags:
        raise _group_error(name, shipped.tags[name])
    known = {*shipped.files, *shipped.tags}
    if include_path is not None:
        known |= set(manager.all_tasks)
    raise _unknown(name, known)


def comes_with_lm_eval(name: str) -> bool:
    """Whether a task of that name comes with lm_eval."""
    return name in _shipped_names().files


@dataclass(frozen=True)
class _Names:
    """The file that defines each task and group, and the tasks that have each tag."""

    files: Mapping[str, Path]
    tags: Mapping[str, Sequence[str]]


@cache
def _shipped_names() -> _Names:
    """The names in the YAML files that come with lm_eval; the first file of a name counts."""
    import lm_eval.tasks

    files, tags = dict[str, Path](), dict[str, list[str]]()
    for path in sorted(Path(str(lm_eval.tasks.__file__)).parent.rglob("*.yaml")):
        text = _read(path)
        if named := sorted(_NAMED.findall(text)):  # that of a group is before that of its tasks
            name = named[0][1]
            files.setdefault(name, path)
            included = (path.parent / other for other in _INCLUDED.findall(text))
            texts = [text, *(_read(other) for other in included if other.is_file())]
            for listed in next(filter(None, map(_TAGS.findall, texts)), []):
                for tag in _WORDS.findall(listed.replace("- ", " ")):
                    tags.setdefault(tag, []).append(name)
    return _Names(files, tags)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _make_index(manager: Any, folder: Path) -> Any:
    return manager(include_path=[str(folder)], include_defaults=False)


def _unknown(name: str, known: Iterable[str]) -> UsageError:
    error = UnknownName("task of lm_eval", printable(name), known)
    if not error.near:  # there are thousands
        error.hint = "`lm_eval ls tasks` lists them; name the folder of your own --include-path."
    return error


def _check_no_group(manager: Any, name: str) -> Any:
    """The manager itself; raises UsageError for a name that stands for several tasks."""
    entry = manager.task_index[name]
    if entry.kind.name not in ("GROUP", "TAG"):
        return manager
    raise _group_error(name, list(_members(entry)))


def _group_error(name: str, members: Sequence[str]) -> UsageError:
    more = len(members) - _MOST_MEMBERS
    listed = ", ".join(f"lm-eval:{printable(member)}" for member in members[:_MOST_MEMBERS])
    return UsageError(
        f"lm-eval:{printable(name)} is a group of {len(members)} tasks of lm_eval.",
        f"Name tasks: {listed}{f' and {more} more' if more > 0 else ''}.",
    )


def _members(entry: Any) -> Iterator[str]:
    """The tasks and groups of a group, as its YAML names them, or those with a tag."""
    if entry.kind.name == "TAG":
        yield from sorted(entry.tags)
        return
    tasks = entry.cfg.get("task")
    for member in tasks if isinstance(tasks, list) else [tasks]:
        named = member.get("task") or member.get("group") if isinstance(member, dict) else member
        yield from map(str, named if isinstance(named, list) else [named])


def read_failure(label: str, fields: Any, error: Exception) -> DataError:
    """What to say of a task whose data or definition lm_eval cannot read."""
    source = str(fields.get("dataset_path") or "")
    reason = one_line(str(error)) or type(error).__name__
    if "/" in source and not Path(source).exists():
        name = label.removeprefix("lm-eval:").partition("/")[0]
        return DataError(
            f"Task {label} needs the data set {printable(source)}, which is not on this machine: "
            f"{reason}.",
            "Where there is a network, fetch it once with `lm_eval --model dummy --limit 1 --tasks "
            f"{name}`; or write a YAML with local data.",
        )
    return DataError(
        f"lm_eval cannot read task {label}: {reason}.",
        "Relative paths in its YAML are read from the current folder, as by lm_eval.",
    )
