"""Text, rank and target tasks: their examples, and rows that are refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import DataError
from hubmerge.specs import Carve, SplitsSpec
from hubmerge.tasks.data import SPLITS, RankExample, TargetExample, load_split, load_stream
from hubmerge.tasks.splits import carve, split_indices
from tests.tasks.builders import rows_task

RANK = {
    "kind": "rank",
    "prompt": "{{ q | trim }}?",
    "choices": "[a, b]",
    "answer": "'ab'.index(key)",
}
TARGET = {"kind": "target", "prompt": "{{ q }}", "target": "{{ a }}"}
OWN_TEST = {"validation": {"of": "test", "fraction": 0.5}}


def texts(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"q": f" q{row} ", "a": f"a{row}", "b": "no", "key": "ab"[row % 2]} for row in range(count)
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet", "json"])
def test_words_as_labels(tmp_path: Path, suffix: str) -> None:
    labels = ["None", "a_b", "NA"] * 10
    task = rows_task(tmp_path, texts(labels), suffix, kind="text")
    train = load_split(task, "train")
    assert train.classes == ("NA", "None", "a b")
    assert (len(train), train.labels().tolist().count(1) <= 10) == (27, True)
    test = load_split(task, "test")
    assert (test.example(1), test.labels()[:3].tolist()) == (("text 1", 2), [1, 2, 0])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([5, 1, 10], ("1", "5", "10")),
        ([1.0, 3.0, 2.0], ("1", "2", "3")),
        ([True, False, True], ("false", "true")),
    ],
)
def test_numbers_as_labels_of_texts(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...]
) -> None:
    for suffix in ("csv", "jsonl"):
        task = rows_task(tmp_path / suffix, texts(labels * 10), suffix, kind="text")
        split = load_split(task, "test")
        assert split.classes == classes
        names = [classes[label] for label in split.labels()[:3]]
        assert names == [str(v).lower().removesuffix(".0") for v in labels]


def test_listed_classes_are_in_label_order(tmp_path: Path) -> None:
    task = rows_task(tmp_path, texts(["Neg", "pos_itive"] * 10), kind="text",
                     classes=("pos itive", "neg", "never"))  # fmt: skip
    split = load_split(task, "test")
    assert split.labels()[:2].tolist() == [1, 0]
    assert split.absent_classes() == ("never",)
    numbered = rows_task(tmp_path / "n", texts([1.0, 0.0] * 10), kind="text", classes=("a", "b"))
    assert load_split(numbered, "test").labels()[:2].tolist() == [1, 0]


def test_labels_that_are_not_in_train_are_refused(tmp_path: Path) -> None:
    rows = texts(["a", "b", "c", "c"] * 5)
    task = rows_task(tmp_path, texts(["a", "b"] * 10), test=rows, kind="text", splits=OWN_TEST)
    with pytest.raises(DataError, match=r"small: the labels of test rows .* not 'a' or 'b'"):
        load_split(task, "test")
    listed = rows_task(tmp_path / "listed", texts(["good", "bad"] * 9), kind="text",
                       classes=("Good", "Bed"))  # fmt: skip
    with pytest.raises(DataError, match="train has the label 'bad', which is not in") as refused:
        load_split(listed, "train")
    assert "Bed" in refused.value.hint


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"text": None}, "the text of test row 2 is empty"),
        ({"text": " \n"}, "the text of test row 2 is empty"),
    ],
)
def test_a_row_without_text_is_refused(tmp_path: Path, broken: dict[str, Any], reason: str) -> None:
    rows = texts(["a", "b"] * 5)
    task = rows_task(tmp_path, rows, test=[*rows[:2], {**rows[2], **broken}], kind="text")
    split = load_split(task, "test")
    assert split.example(1) == ("text 1", 1)
    with pytest.raises(DataError, match=f"Task small: {reason}"):
        split.example(2)


def test_a_column_of_numbers_is_not_text(tmp_path: Path) -> None:
    task = rows_task(
        tmp_path, [{"text": 5, "label": "ab"[row % 2]} for row in range(9)], kind="text"
    )
    with pytest.raises(DataError, match="the text of test row 0 is 5, not text"):
        load_split(task, "test").example(0)


def test_lists_are_not_labels(tmp_path: Path) -> None:
    task = rows_task(tmp_path, texts([["a"], ["b"]]), kind="text")
    with pytest.raises(DataError, match="column 'label' does not hold labels"):
        load_split(task, "test")


def test_rank_examples(tmp_path: Path) -> None:
    split = load_split(rows_task(tmp_path, questions(20), **RANK), "test")
    assert split.example(3) == RankExample("q3?", ("a3", "no"), 1)
    assert split.example(2).target == "a2"
    assert (split.classes, split.rows.column_names) == ((), ["q", "a", "b", "key"])
    fixed = rows_task(tmp_path / "fixed", questions(20), **{**RANK, "choices": ("No", "Yes")})
    assert load_split(fixed, "test").example(3) == RankExample("q3?", ("No", "Yes"), 1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answer": "2"}, "the answer of test row 0, 2, is not an index of its 2 choices"),
        ({"answer": "-1"}, "is not an index"),
        ({"answer": "a"}, "is not an index"),
        ({"answer": "0.5"}, "is not an index"),
        ({"answer": "none"}, "is not an index"),
        ({"answer": "'x'.index(key)"}, "the answer of test row 0 cannot be evaluated"),
        ({"answer": "row.nowhere"}, "the answer of test row 0 cannot be evaluated: .*nowhere"),
        ({"choices": "[a]"}, "the choices of test row 0 are only 1"),
        ({"choices": "[]"}, "the choices of test row 0 are only 0"),
        ({"choices": "a"}, "the choices of test row 0, 'a0', are not a list"),
        ({"choices": "[a, none]"}, "the choice of test row 0 is empty"),
        ({"choices": "[a, 1]"}, "the choice of test row 0 is 1, not text"),
        ({"prompt": "{{ q.nowhere }}"}, "the prompt of test row 0 cannot be rendered: .*nowhere"),
        ({"prompt": "{{ q | replace('q0', '') }}"}, "the prompt of test row 0 is empty"),
    ],
)
def test_broken_rank_examples_are_refused(
    tmp_path: Path, fields: dict[str, str], reason: str
) -> None:
    split = load_split(rows_task(tmp_path, questions(9), **{**RANK, **fields}), "test")
    with pytest.raises(DataError, match=f"Task small: .*{reason}"):
        split.example(0)


def test_target_examples(tmp_path: Path) -> None:
    rows = [{"q": f"q{row}", "a": "a" * 5000} for row in range(20)]
    split = load_split(rows_task(tmp_path, rows, **TARGET), "validation")
    assert split.example(0) == TargetExample(split.rows[0]["q"], "a" * 5000)


def test_an_empty_target_is_refused(tmp_path: Path) -> None:
    rows = [*({"q": "q", "a": "a"} for _ in range(3)), {"q": "q", "a": None}]
    split = load_split(rows_task(tmp_path, rows, **TARGET), "test")
    with pytest.raises(DataError, match="the target of test row 3 is empty"):
        split.example(3)


@pytest.mark.parametrize(
    "fields", [{"prompt": "{{ kee }}"}, {"choices": "[a, kee]"}, {"answer": "kee"}], ids=str
)
def test_unknown_columns_are_refused(tmp_path: Path, fields: dict[str, str]) -> None:
    with pytest.raises(DataError, match="no column 'kee', only q, a, b, key") as refused:
        load_split(rows_task(tmp_path, questions(9), **{**RANK, **fields}), "test")
    assert "Did you mean 'key'?" in refused.value.hint


def test_the_python_order_matches_the_public_code() -> None:
    # random.seed(42); random.shuffle(rows); validation = rows[:32]; test = rows[32:]
    rows = list(range(926))
    random.seed(42)
    random.shuffle(rows)
    kept, carved = carve(926, Carve(count=32, seed=42, order="python"))
    assert (carved, kept) == (rows[:32], rows[32:])
    assert carve(4, Carve(count=1, order="python")) == ([0, 1, 3], [2])  # by hand


def test_carving_a_count() -> None:
    assert len(carve(20_000, Carve(count=6000))[1]) == 6000
    assert carve(3, Carve(count=9))[0] == []


def test_splits_like_those_of_the_papers_language_tasks() -> None:
    carve_32 = Carve(of="validation", count=32, seed=42, order="python")
    qasc = SplitsSpec(validation=carve_32, test="validation")
    chosen, reported = split_indices(qasc, "validation", 926), split_indices(qasc, "test", 926)
    assert (len(chosen), sorted(chosen + reported)) == (32, list(range(926)))
    assert split_indices(qasc, "train", 50) == list(range(50))
    cloze = SplitsSpec(train="validation", validation=carve_32.model_copy(update={"of": "test"}))
    assert (len(split_indices(cloze, "test", 100)), len(split_indices(cloze, "train", 70))) == (
        68,
        70,
    )


def test_smaller_samples_are_prefixes_of_larger_ones(tmp_path: Path) -> None:
    split = load_split(rows_task(tmp_path, questions(40), **RANK), "test")
    prompts = [[split.sample(n, seed).example(row).prompt for row in range(5)]
               for n, seed in ((5, 0), (10, 0), (5, 1))]  # fmt: skip
    assert prompts[0] == prompts[1] != prompts[2]
    assert len(split.sample(5, 0)) == 5
    assert split.sample(40, 0) is split


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_stream_depends_only_on_its_seed(tmp_path: Path, suffix: str) -> None:
    task = rows_task(tmp_path, texts(["b", "a"] * 10), suffix, kind="text", splits=OWN_TEST)
    stream, same = load_stream(task, 12, buffer=4), load_stream(task, 12, buffer=4)
    assert stream.classes == ("a", "b")
    epoch = list(stream.epoch(1))
    assert epoch == list(same.epoch(1)) == list(stream.epoch(1))
    assert epoch != list(stream.epoch(2))
    assert set(epoch) == {(f"text {row}", 1 - row % 2) for row in range(12)}


def test_a_stream_of_prompts(tmp_path: Path) -> None:
    stream = load_stream(rows_task(tmp_path, questions(20), splits=OWN_TEST, **RANK))
    assert stream.classes == ()
    assert {example.prompt for example in stream.epoch(0)} == {f"q{row}?" for row in range(20)}


def test_a_broken_row_of_a_stream_is_named(tmp_path: Path) -> None:
    task = rows_task(tmp_path, [{"q": "q", "a": ""}], splits=OWN_TEST, **TARGET)
    with pytest.raises(DataError, match="the target of train, 0 rows into the stream, is empty"):
        next(load_stream(task).epoch(0))


def test_an_empty_stream_raises(tmp_path: Path) -> None:
    task = rows_task(tmp_path, texts(["a", "b"]), "csv", kind="text", splits=OWN_TEST)
    stream = load_stream(task)
    with pytest.raises(DataError, match="has no train examples"):
        list(replace(stream, rows=stream.rows.take(0)).epoch(1))


def test_one_column_cannot_be_both_text_and_label(tmp_path: Path) -> None:
    data = {"path": tmp_path / "train.csv", "text": "label"}
    task = rows_task(tmp_path, texts(["a", "b"]), "csv", kind="text", data=data)
    with pytest.raises(DataError, match="column 'label' is both its text and its label"):
        load_split(task, "train")


def test_a_split_that_is_carved_from_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its validation split is carved from 'train'") as refused:
        load_stream(rows_task(tmp_path, questions(9), **RANK))
    assert "`splits:`" in refused.value.hint


def test_a_single_file_is_train(tmp_path: Path) -> None:
    task = rows_task(tmp_path, questions(9), data={"path": tmp_path / "train.jsonl"}, **RANK)
    assert len(load_split(task, "train")) == 9
    with pytest.raises(DataError, match=r"train\.jsonl is a single file, used as train"):
        load_split(task, "test")


def test_a_folder_whose_name_is_a_pattern(tmp_path: Path) -> None:
    task = rows_task(tmp_path / "odd [1]* {a}", texts(["a", "b"] * 10), kind="text")
    assert [len(load_split(task, split)) for split in SPLITS] == [18, 2, 20]
