"""The shipped text files agree with their task files, and the program that makes them works."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from recipes.assets.mini.text_data import CLASSES, build, write_all
from recipes.assets.mini.text_rows import COUNTS, PARTS, even_shares, normalize, split_rows
from recipes.assets.mini.text_sources import (
    FIRST_NOUN_FILE,
    FIRST_VERB_FILE,
    GROUPS,
    NOUNS,
    SNIPPETS,
    VERBS,
    Archive,
    Example,
    Sources,
    emoji_examples,
    gloss_examples,
    movie_examples,
    read_archive,
    source_examples,
)

MINI = Path(__file__).resolve().parents[2] / "hubmerge" / "mini"
CATALOG = MINI.parent / "tasks" / "catalog"
SMALLER = {"emoji": {"train": 1330, "validation": 133, "test": 399}}
PACKED = [(task, split) for task in CLASSES for split in COUNTS]


def task_file(task: str) -> dict[str, Any]:
    text: dict[str, Any] = yaml.safe_load((CATALOG / f"mini-{task}.yaml").read_text())
    return text


def table_of(task: str, split: str) -> pa.Table:
    data = task_file(task)["data"]
    return pq.read_table(CATALOG / data["path"] / data["files"][split])


def texts_of(task: str, split: str) -> list[str]:
    texts: list[str] = table_of(task, split)["text"].to_pylist()
    return texts


@pytest.mark.parametrize(("task", "split"), PACKED)
def test_columns_counts_and_classes(task: str, split: str) -> None:
    table = table_of(task, split)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert table.column_names == ["text", "label"]
    assert features["text"] == {"dtype": "string", "_type": "Value"}
    assert features["label"] == {"_type": "ClassLabel", "names": list(CLASSES[task])}
    assert len(table) == SMALLER.get(task, COUNTS)[split]
    assert set(table["label"].to_pylist()) == set(range(len(CLASSES[task])))
    assert all(text and text == " ".join(text.split()) for text in table["text"].to_pylist())


@pytest.mark.parametrize("task", CLASSES)
def test_no_text_is_in_two_splits_or_twice_in_one(task: str) -> None:
    texts = [normalize(text) for split in COUNTS for text in texts_of(task, split)]
    assert len(set(texts)) == len(texts)


def test_two_tasks_share_no_film_review() -> None:
    movie, source = (
        {normalize(t) for s in COUNTS for t in texts_of(k, s)} for k in list(CLASSES)[:2]
    )
    assert not movie & source


@pytest.mark.parametrize(("task", "split"), [pair for pair in PACKED if pair[0] != "emoji"])
def test_classes_are_balanced_as_far_as_sources_allow(task: str, split: str) -> None:
    counts = Counter(table_of(task, split)["label"].to_pylist())
    scarce = {"noun": NOUNS.index("motive"), "verb": VERBS.index("weather")}.get(task)
    rest = {count for label, count in counts.items() if label != scarce}
    assert max(rest) - min(rest) <= 1
    assert scarce is None or counts[scarce] < min(rest)


@pytest.mark.parametrize("task", CLASSES)
def test_a_task_file_has_a_name_for_every_class(task: str) -> None:
    text = task_file(task)
    assert len(text["classes"]) == len(CLASSES[task])
    # A class name may differ from its label, but must not be the name of another label.
    others = [set(CLASSES[task]) - {name} for name in CLASSES[task]]
    assert all(word not in names for word, names in zip(text["classes"], others, strict=True))


def test_no_text_contains_contact_data() -> None:
    reach = re.compile(r"\d{3}[-. )]+\d{4}|\S@\w+\.\w|@(?!anonymous)\w{3}")
    snippets = [text for task in ("movie", "source") for s in COUNTS for text in texts_of(task, s)]
    assert [text for text in snippets if reach.search(text)] == []


def test_the_notice_names_every_licence() -> None:
    notice = (MINI / "text" / "NOTICE.md").read_text(encoding="utf-8")
    for words in (
        "Copyright (c) 2016 C.J. Hutto",
        "Copyright (c) 2019 Mu-An Chiou",
        "WordNet 3.1 Copyright 2011 by Princeton University.  All rights reserved.",
        "Copyright © 1991-2025 Unicode, Inc.",
    ):
        assert words in notice


# The program on small sources; nothing is downloaded.


def snippets(kind: str, count: int) -> str:
    """Ratings from -4 to 4; every text has three words or more, with its kind and number."""
    lines = (f"{n}\t{n % 9 - 4}\t{kind} text number{n}" for n in range(count))
    return "\r\n".join(lines) + "\r\n"


def synsets(first: int, names: tuple[str, ...], count: int) -> str:
    licence = "  1 This software and database is being provided to you  \n"
    lines = (
        f'{n:08} {first + n % len(names):02} n 01 word 0 000 | meaning {n}; "a word"  \n'
        for n in range(count)
    )
    return licence + "".join(lines)


def small_sources() -> Sources:
    emoji = {chr(0x1F300 + n): {"name": f"sign {n}", "group": GROUPS[n % 9]} for n in range(300)}
    return Sources(
        snippets={kind: snippets(kind, 100) for kind in SNIPPETS},
        nouns=synsets(FIRST_NOUN_FILE, NOUNS, 25 * 30),
        verbs=synsets(FIRST_VERB_FILE, VERBS, 15 * 14),
        emoji=json.dumps(emoji),
    )


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("once", "again"):
        write_all(build(small_sources()), tmp_path / name)
    assert digests(tmp_path / "once") == digests(tmp_path / "again")
    assert set(digests(tmp_path / "once")) == {f"{t}-{s}.parquet" for t, s in PACKED}


def test_a_small_source_is_divided_in_proportion() -> None:
    tasks = build(small_sources())
    assert {split: len(rows) for split, rows in tasks["noun"].items()} == {
        split: 25 * 2 * parts for split, parts in PARTS.items()
    }
    assert {split: len(rows) for split, rows in tasks["verb"].items()} == {
        split: 15 * parts for split, parts in PARTS.items()
    }
    for task, splits in tasks.items():
        for rows in splits.values():
            assert {row.label for row in rows} == set(range(len(CLASSES[task])))


def test_the_order_of_a_source_does_not_matter() -> None:
    examples = [Example(f"text {n}", n % 2) for n in range(280)]
    forwards, backwards = (split_rows("t", 2, order) for order in (examples, examples[::-1]))
    assert forwards == backwards
    assert split_rows("u", 2, examples) != forwards


def test_repeated_texts_count_once_and_texts_with_two_labels_never() -> None:
    examples = [Example(f"text {n}", n % 2) for n in range(28)]
    again = [Example("Text 1!", 1), Example("text, 2", 1)]
    rows = split_rows("t", 2, [*examples, Example("text 28", 0), *again])
    texts = [row.text for split in rows.values() for row in split]
    assert "Text 1!" not in texts
    assert not {"text 2", "text, 2"} & set(texts)
    assert len(texts) == 28


def test_a_class_that_cannot_be_in_every_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="13 texts"):
        split_rows("t", 1, [Example(f"text {n}", 0) for n in range(13)])


def test_shares_are_equal_until_a_pool_is_empty() -> None:
    assert even_shares([10, 2, 10], 12) == [5, 2, 5]
    assert even_shares([10, 10, 10], 11) == [4, 4, 3]
    assert even_shares([1, 2, 3], 100) == [1, 2, 3]


def test_snippets_are_read_and_filtered() -> None:
    lines = [
        "1\t1.0\tsalt &amp; pepper  shine",
        "2\t-2.5\ta dull, dull film",
        "3\t0.9\tneither one nor another",
        "4\t3\tgreat fun",
        "5\t3\tcall me: 555 555 0100",
        "6\t3\twrite to someone@example.org",
    ]
    read = "\r\n".join(lines) + "\r\n"
    assert list(movie_examples(read)) == [
        Example("salt & pepper shine", 1),
        Example("a dull, dull film", 0),
    ]
    by_kind = dict.fromkeys(SNIPPETS, "") | {"editorial": lines[2]}
    assert list(source_examples(by_kind)) == [Example("neither one nor another", 2)]


def test_definitions_are_read_without_their_examples() -> None:
    data = (
        "  1 This software and database is being provided\n"
        "00001740 03 n 01 entity 0 000 | of every kind  \n"
        '00002000 05 n 01 cat 0 000 | small feline; a pet; "the cat\'s away"; "a cat"  \n'
        "00003000 28 n 01 dusk 0 000 | (poetic) the end of day  \n"
        "00004000 29 v 01 blink 0 000 | close an eye  \n"
    )
    assert list(gloss_examples(data, FIRST_NOUN_FILE, NOUNS)) == [
        Example("small feline; a pet", NOUNS.index("animal")),
        Example("(poetic) the end of day", NOUNS.index("time")),
    ]


def test_emoji_are_read() -> None:
    data = json.dumps({"🍇": {"name": "grapes", "group": "Food & Drink"}})
    assert list(emoji_examples(data)) == [Example("grapes", GROUPS.index("Food & Drink"))]


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"right")
    right = Archive("a.tgz", hashlib.sha256(b"right").hexdigest(), "npm", "a@1")
    assert read_archive(right, tmp_path) == b"right"
    (tmp_path / "a.tgz").write_bytes(b"wrong")
    with pytest.raises(ValueError, match="SHA-256"):
        read_archive(right, tmp_path)
