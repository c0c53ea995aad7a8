"""Tasks of pairs: their YAML, their rows, and the documents that belong to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from hubmerge.errors import DataError, HubmergeError, UsageError
from hubmerge.tasks.check import check_task
from hubmerge.tasks.chosen_metric import with_metric
from hubmerge.tasks.data import PairExample, load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.stream import load_stream
from hubmerge.tasks.task import Task

CORPUS = [{"_id": f"d{n}", "title": f"T{n}", "text": f"document {n}"} for n in range(4)]
QUERIES = [
    {"query": "first", "docs": ["d1", "d3"]},
    {"query": "second", "docs": ["d0"]},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_task(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> Task:
    write_rows(folder / "rows.jsonl", rows)
    spec = {
        "name": "faq", "kind": "pairs", "data": {"path": "rows.jsonl"},
        "splits": {"validation": {"of": "train", "count": 1}, "test": {"of": "train", "count": 1}},
        "anchor": "{{ query }}", "positive": "{{ answer }}", **fields,
    }  # fmt: skip
    (folder / "faq.yaml").write_text(yaml.safe_dump(spec))
    return find_task(str(folder / "faq.yaml"))


def corpus_task(folder: Path, queries: list[dict[str, Any]], **corpus: Any) -> Task:
    write_rows(folder / "corpus.jsonl", CORPUS)
    files = {}
    for split in ("train", "validation", "test"):
        write_rows(folder / f"{split}.jsonl", queries)
        files[split] = f"{split}.jsonl"
    spec = {
        "name": "search", "kind": "pairs",
        "data": {"path": ".", "files": {**files, "corpus": "corpus.jsonl"}},
        "splits": {"validation": "validation"},
        "anchor": "{{ query }}", "relevant": "docs",
        "corpus": {"text": "{{ title }}: {{ text }}", **corpus},
    }  # fmt: skip
    (folder / "search.yaml").write_text(yaml.safe_dump(spec))
    return find_task(str(folder / "search.yaml"))


def test_documents_are_the_positives_of_a_split(tmp_path: Path) -> None:
    rows = [{"query": q, "answer": a} for q, a in ("ax", "by", "az", "cx")]
    split = load_split(pairs_task(tmp_path, rows * 2), "train")
    documents = split.documents
    assert set(documents.texts) == {"x", "y", "z"}
    for row, relevant in enumerate(documents.relevant):
        example = split.example(row)
        assert isinstance(example, PairExample)
        texts = {documents.texts[position] for position in relevant}
        assert texts == ({"x", "z"} if example.anchor == "a" else {example.positive})


def test_documents_are_those_of_a_corpus(tmp_path: Path) -> None:
    split = load_split(corpus_task(tmp_path, QUERIES), "test")
    assert split.documents.texts[1] == "T1: document 1"
    assert split.documents.relevant == ((1, 3), (0,))
    assert split.example(0) == PairExample("first", "T1: document 1", None, ("d1", "d3"))


def test_the_digest_depends_on_the_corpus(tmp_path: Path) -> None:
    first = corpus_task(tmp_path, QUERIES)
    digest = first.digest
    write_rows(tmp_path / "corpus.jsonl", CORPUS[:2])
    assert find_task(str(tmp_path / "search.yaml")).digest != digest


@pytest.mark.parametrize(("queries", "corpus", "sentence"), [
    ([{"query": "q", "docs": ["d9"]}], {}, "test row 0 names 'd9', which the corpus does not have"),
    ([{"query": "q", "docs": []}], {}, "test row 0 has no relevant document"),
    (QUERIES, {"id": "key"}, "its corpus has no column 'key', only _id, title, text"),
    (QUERIES, {"id": "text", "text": "{{ same }}"}, "no column 'same'"),
    (QUERIES, {"text": " "}, "document 0 of its corpus has no text"),
])  # fmt: skip
def test_broken_corpora_are_refused(
    tmp_path: Path, queries: list[dict[str, Any]], corpus: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(HubmergeError, match=sentence):
        assert load_split(corpus_task(tmp_path, queries, **corpus), "test").documents


def test_two_documents_of_one_id_are_refused(tmp_path: Path) -> None:
    task = corpus_task(tmp_path, QUERIES)
    write_rows(tmp_path / "corpus.jsonl", [*CORPUS, CORPUS[1]])
    task = find_task(str(tmp_path / "search.yaml"))
    with pytest.raises(DataError, match="two documents of its corpus have the id 'd1'"):
        load_split(task, "test")


def test_all_broken_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"query": "a", "answer": text} for text in ("x", "", " ", "y", "z", "w")]
    split = load_split(pairs_task(tmp_path, rows), "train")
    report = check_task(split.task)
    assert sum("is empty" in problem for problem in report.problems) == 2
    with pytest.raises(DataError, match="the positive of train row"):
        assert split.documents


def test_a_corpus_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="documents of a corpus"):
        load_stream(corpus_task(tmp_path, QUERIES))


@pytest.mark.parametrize(("fields", "sentence"), [
    ({"positive": ""}, "either `positive`, or `relevant` and a `corpus`"),
    ({"relevant": "docs"}, "give both, or none"),
    ({"metric": "accuracy"}, "measured by ndcg_at_10 or mrr_at_10"),
    ({"prompt": "x"}, "`prompt` is for kind"),
])  # fmt: skip
def test_wrong_yaml_is_refused(tmp_path: Path, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        pairs_task(tmp_path, [{"query": "a", "answer": "b"}], **fields)


def test_the_metric_may_be_another(tmp_path: Path) -> None:
    task = pairs_task(tmp_path, [{"query": "a", "answer": "b"}] * 4)
    assert task.metric == "ndcg_at_10"
    assert with_metric(task, "accuracy_at_1").id.endswith("+accuracy_at_1")
    with pytest.raises(UsageError, match="cannot be measured by loss"):
        with_metric(task, "loss")


@pytest.mark.parametrize("columns", [
    ("anchor", "positive"), ("query", "positive", "negative"), ("Question", "positive", "other"),
])  # fmt: skip
def test_files_of_pairs_are_recognised(tmp_path: Path, columns: tuple[str, ...]) -> None:
    rows = [{column: f"{column} {n}" for column in columns} for n in range(20)]
    task = find_task(str(write_rows(tmp_path / "faq.jsonl", rows)))
    assert task.spec.kind == "pairs"
    example = load_split(task, "train").example(0)
    assert isinstance(example, PairExample)
    assert example.positive.startswith("positive ")
    assert (example.negative is not None) == ("negative" in columns)


def test_classes_are_texts_by_their_names(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = {"text": ["dull", "fine"], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "films.parquet")
    (tmp_path / "films.yaml").write_text(
        "name: films\nkind: pairs\ndata: {path: ., files: {train: films.parquet, test: "
        "films.parquet}}\nsplits: {validation: {count: 1}}\nanchor: '{{ text }}'\n"
        "positive: 'A {{ label }} film.'\n"
    )
    split = load_split(find_task(str(tmp_path / "films.yaml")), "test")
    assert split.documents.texts == ("A bad film.", "A good film.")
