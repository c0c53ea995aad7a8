"""Tasks of lm_eval (EleutherAI/lm-evaluation-harness): found, checked and identified.

Its own code reads the definition and the data, and writes the questions; nothing of it is imported
before a task of it is named.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hubmerge.durable import hash_file
from hubmerge.errors import DataError, HubmergeError, UsageError
from hubmerge.specs import TaskSpec
from hubmerge.specs.task_data import DataSpec
from hubmerge.tasks.lm_eval_index import comes_with_lm_eval, index_of, read_failure
from hubmerge.tasks.lm_eval_name import LmEvalName, LmEvalTask, parse_lm_eval_name
from hubmerge.tasks.source import one_line
from hubmerge.tasks.task import Task

_MIN_VERSION = (0, 4, 13)
_INSTALL = "Install it with `pip install 'hubmerge[lm-eval]'`."
# Where the data are, which does not decide what they are; the rest is in the digest.
_LOCATIONS = ("task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs")
_RANDOM_SEED, _OTHER_SEED = 0, 1234  # of `lm_eval` without options


def find_lm_eval_task(text: str, include_path: Path | None = None) -> Task:
    """The task of `lm-eval:NAME`, perhaps in a folder of YAML files.

    Raises UsageError if lm_eval is not installed, or the task is a group or needs what is not
    supported; UnknownName for a name that is not known; DataError for data that cannot be read.
    """
    name = parse_lm_eval_name(text)
    folder = include_path.expanduser().resolve() if include_path else None
    check_installed(str(name))
    task = load_lm_eval_task(name, folder)
    filters = [ensemble.name for ensemble in task._filters]
    by_metric = task.aggregation()
    more_is_better = task.higher_is_better()
    spec = TaskSpec(
        name="lm-eval", kind="target", data=DataSpec(path=Path(".")), prompt="-", target="-"
    )
    found = LmEvalTask(
        label=str(name),
        digest=_digest(name, task),
        metrics=tuple(f"{metric},{key}" for metric in by_metric for key in filters),
        row_metrics=tuple(
            f"{metric},{key}"
            for metric, aggregate in by_metric.items()
            for key in filters
            if aggregate is _mean() and more_is_better.get(metric)
        ),
        only_split=only_split(task),
        include_path=folder,
    )
    return Task(spec, folder or Path(), lm_eval=found)


def find_known_task(label: str, paths: list[Path]) -> Task:
    """The task of a name: one that comes with lm_eval, or the one that was used here last."""
    name = parse_lm_eval_name(label)
    check_installed(label)
    known = [] if comes_with_lm_eval(name.name) else [path for path in paths if path.is_dir()]
    return find_lm_eval_task(label, known[0] if known else None)


def find_task_with_id(task_id: str, paths: list[Path]) -> Task:
    """The task with that id, of lm_eval or in one of these folders; raises DataError for none."""
    label = task_id.partition("@")[0]
    check_installed(label)
    folders = [path for path in paths if path.is_dir()]
    is_own = not comes_with_lm_eval(parse_lm_eval_name(label).name)
    for path in folders if is_own else [*folders, None]:
        with suppress(DataError, UsageError):  # what is there now may be another task
            task = find_lm_eval_task(label, path)
            if task.id == task_id:
                return task
    if not folders and not is_own:
        find_lm_eval_task(label)  # raises for data that cannot be read
    raise DataError(
        f"Task {label} is not defined here as it was for {task_id}.",
        f"Write --tasks {label}, with --include-path if its YAML is your own.",
    )


def check_installed(label: str) -> None:
    """Raise UsageError unless lm_eval is installed in a version that is known to work."""
    try:
        installed = version("lm_eval")
    except PackageNotFoundError:
        raise UsageError(f"Task {label} needs the package lm_eval.", _INSTALL) from None
    numbers = tuple(int(part) for part in installed.split(".")[:3] if part.isdigit())
    if numbers < _MIN_VERSION:
        raise UsageError(
            f"Task {label} needs lm_eval 0.4.13 or newer, and {installed} is installed.", _INSTALL
        )


@cache
def load_lm_eval_task(name: LmEvalName, folder: Path | None, split: str = "test") -> Any:
    """lm_eval's own task, whose questions are those of `split`, "test" or "validation".

    Its questions are the same in every process. Raises as `find_lm_eval_task` does.
    """
    import lm_eval.tasks  # noqa: F401  # before its log is filtered

    with quiet_lm_eval(), _seeded():
        manager = index_of(name.name, folder)
        fields = manager.task_index[name.name].cfg or {}
        _check_fields(name, fields)
        try:
            task = manager.load(name.name)["tasks"][name.name]
        except Exception as error:  # of any library that reads data, or of the task's own code
            raise read_failure(str(name), fields, error) from error
    _check_supported(name, task)
    if split == "validation":
        _ask_validation(task)
    shots = task.get_config("num_fewshot")
    if name.shots is not None and shots == 0:
        raise UsageError(
            f"Task {name} has no examples before its questions: its YAML says `num_fewshot: 0`.",
            f"Write {LmEvalName(name.name, None, name.chat)}.",
        )
    task.set_config("num_fewshot", (name.shots if name.shots is not None else shots) or 0)
    return task


def only_split(task: Any) -> str | None:
    """The split that a task has its questions in, None if it has validation and test apart."""
    if not (task.has_test_docs() and task.has_validation_docs()):
        default = "test" if task.has_test_docs() else "validation"
        return str(task.config.test_split or task.config.validation_split or default)
    test = task.config.test_split
    return str(test) if test is not None and test == task.config.validation_split else None


@contextmanager
def lm_eval_errors(label: str, doing: str) -> Iterator[None]:
    """Turn what lm_eval, or a task's own code, raises into one sentence."""
    try:
        yield
    except HubmergeError:
        raise
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = one_line(str(error)) or type(error).__name__
        raise DataError(
            f"lm_eval cannot {doing} of task {label}: {reason}.",
            "Try the task with the `lm_eval` command, or change it in a YAML with `include:`.",
        ) from error


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep the log of lm_eval to itself, but for errors and the first text that it truncates.

    Its modules must be imported before, as each has a logger of its own.
    """
    names = [name for name in logging.root.manager.loggerDict if name.startswith("lm_eval")]
    loggers, only_truncation = [logging.getLogger(name) for name in names], _OnlyTruncation()
    for logger in loggers:
        logger.addFilter(only_truncation)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(only_truncation)


class _OnlyTruncation(logging.Filter):
    """Passes errors, and the first message of the process that something was truncated."""

    is_reported = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "truncat" in record.getMessage().lower() and not _OnlyTruncation.is_reported:
            _OnlyTruncation.is_reported = True
            return True
        return record.levelno >= logging.ERROR


@contextmanager
def _seeded() -> Iterator[None]:
    """Seeds as in the `lm_eval` command, for tasks that shuffle their data while they read them."""
    states = random.getstate(), np.random.get_state()
    random.seed(_RANDOM_SEED)
    np.random.seed(_OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _mean() -> Any:
    from lm_eval.api.metrics import mean

    return mean


def _ask_validation(task: Any) -> None:
    """Let a task with validation and test ask the questions of validation.

    lm_eval then does what it does for a YAML without `test_split:`; the row that is asked is never
    an example before itself.
    """
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask):
        raise UsageError(
            f"Task lm-eval:{task.task_name} is a class of Python: lm_eval asks only its test rows.",
            "Use --split test, or select on a task that is written in YAML.",
        )
    shots = task.config.fewshot_config
    own = shots is not None and shots.split == task.config.validation_split
    task.set_config("test_split", task.config.validation_split if own else None)
    task.task_docs = task.eval_docs


def _check_fields(name: LmEvalName, fields: Mapping[str, Any]) -> None:
    """Raise UsageError for a task that runs what a model writes, before its data are read."""
    if fields.get("unsafe_code"):
        raise UsageError(
            f"Task {name} runs the code that a model writes, which hubmerge does not do.",
            "Measure it with the `lm_eval` command, in a sandbox.",
        )


def _check_supported(name: LmEvalName, task: Any) -> None:
    """Raise UsageError for a task that needs more than texts, or samples its answers."""
    if getattr(task, "UNSAFE_CODE", False):
        _check_fields(name, {"unsafe_code": True})
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(
            f"Task {name} asks about images or sounds, and language models read texts.",
            "Name a task of texts.",
        )
    options = task.get_config("generation_kwargs") or {}
    if options.get("do_sample", float(options.get("temperature") or 0) > 0):
        raise UsageError(
            f"Task {name} draws its texts at random, so no two measurements are alike.",
            "Write a YAML with `include:` of its YAML and `do_sample: false`, and name its folder "
            "with --include-path.",
        )


def _digest(name: LmEvalName, task: Any) -> str:
    """16 hex digits of the definition, the code that it names, and all rows that it reads."""
    fields = {key: value for key, value in vars(task.config).items() if key not in _LOCATIONS}
    metadata = fields.pop("metadata", None) or {}
    docs = [task.validation_docs() if task.has_validation_docs() else []]
    docs.append(task.test_docs() if task.has_test_docs() else [])
    if task.get_config("num_fewshot"):
        docs.append(task.fewshot_docs())
    described = {
        "chat": name.chat,
        "fields": {key: value for key, value in fields.items() if value is not None},
        "version": metadata.get("version"),
        "class": type(task),
        "docs": [_hash_docs(split) for split in docs],
    }
    text = json.dumps(described, sort_keys=True, default=_describe)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_docs(docs: Any) -> str:
    digest = hashlib.sha256()
    for doc in docs or []:
        digest.update(doc_bytes(doc))
        digest.update(b"\n")
    return digest.hexdigest()


def doc_bytes(doc: Any) -> bytes:
    """A row of lm_eval as bytes, the same on every machine."""
    return json.dumps(doc, sort_keys=True, default=_describe).encode()


def _describe(value: Any) -> Any:
    """A value of a definition as JSON: functions and classes by the bytes of their file."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: part for key, part in vars(value).items() if part is not None}
    if callable(value):
        code = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
        name = getattr(code, "__qualname__", "")
        try:
            path = Path(str(inspect.getsourcefile(code)))
        except TypeError:  # built in
            return name
        return f"{name}#{hash_file(path)}" if path.is_file() else name
    return str(value)
