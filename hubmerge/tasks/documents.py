"""The documents of a task of pairs: its corpus, or all positives of a split."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hubmerge.errors import DataError
from hubmerge.refs import printable
from hubmerge.specs import CorpusSpec, DataSpec, TaskSpec
from hubmerge.specs.prompt_language import template_names
from hubmerge.tasks.examples import PairExample
from hubmerge.tasks.prompts import render_template
from hubmerge.tasks.rows import CHECK_HINT, task_errors
from hubmerge.tasks.source import read_rows
from hubmerge.tasks.task import Task

_MAX_LISTED = 3  # ids and rows that an error names


@dataclass(frozen=True)
class Corpus:
    """The documents of a task by their ids, in the order of the data."""

    texts: Mapping[str, str]

    def complete(self, example: PairExample, location: str) -> PairExample:
        """The pair with the text of its first document; DataError for ids that do not exist."""
        unknown = [each for each in example.relevant if each not in self.texts]
        if unknown:
            names = ", ".join(printable(repr(each)) for each in unknown[:_MAX_LISTED])
            raise DataError(
                f"{location} names {names}, which the corpus does not have",
                "Check the column `id` of the corpus, or remove the row.",
            )
        return dataclasses.replace(example, positive=self.texts[example.relevant[0]])


@dataclass(frozen=True)
class Documents:
    """Texts, and for each row of a split the positions of those that belong to it, ascending."""

    texts: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]


def load_corpus(task: Task) -> Corpus | None:
    """The corpus of a task, None if it has none.

    Raises DataError for a corpus that cannot be read, without documents, with an empty text, or
    with two documents of one id.
    """
    spec = task.spec.corpus
    if spec is None:
        return None
    rows = read_rows(_as_task(task, spec), spec.split)
    used = {spec.id, *template_names(spec.text)} - {"row", "range"}
    if missing := sorted(used - set(rows.column_names)):
        raise DataError(
            f"Task {task.name}: its corpus has no column {printable(repr(missing[0]))}, only "
            f"{', '.join(map(printable, rows.column_names))}.",
            "Name them under `corpus:`, as `id:` and `text:`.",
        )
    texts: dict[str, str] = {}
    with task_errors(task, "its corpus cannot be read"):
        for number, row in enumerate(rows):
            key, text = str(row[spec.id]), render_template(spec.text, row, None)
            if key in texts:
                raise DataError(f"two documents of its corpus have the id {printable(repr(key))}")
            if not text.strip():
                raise DataError(f"document {number} of its corpus has no text")
            texts[key] = text
    if not texts:
        raise DataError(f"Task {task.name}: its corpus has no documents.", CHECK_HINT)
    return Corpus(texts)


def find_documents(
    task: Task, pairs: Iterable[PairExample | DataError], corpus: Corpus | None
) -> Documents:
    """The documents of a split, and which belong to each row; all positives without a corpus.

    Rows with the same anchor share their documents. Raises DataError, with all problems at once.
    """
    listed = list(pairs)
    examples = [pair for pair in listed if isinstance(pair, PairExample)]
    errors = [pair for pair in listed if isinstance(pair, DataError)]
    if errors:
        more = f" {len(errors)} rows cannot be used." if len(errors) > 1 else ""
        raise DataError(f"{errors[0].message}{more}", errors[0].hint or CHECK_HINT)
    names = list(corpus.texts) if corpus else list(dict.fromkeys(p.positive for p in examples))
    position = {name: number for number, name in enumerate(names)}
    by_anchor: dict[str, set[int]] = defaultdict(set)
    for example in examples:
        by_anchor[example.anchor].update(
            position[name] for name in (example.relevant if corpus else (example.positive,))
        )
    texts = tuple(corpus.texts.values()) if corpus else tuple(names)
    return Documents(texts, tuple(tuple(sorted(by_anchor[e.anchor])) for e in examples))


def _as_task(task: Task, spec: CorpusSpec) -> Task:
    """A task whose rows are the documents."""
    data: DataSpec = task.spec.data.model_copy(
        update={"config": spec.config or task.spec.data.config}
    )
    changed: TaskSpec = task.spec.model_copy(update={"data": data})
    return dataclasses.replace(task, spec=changed)
