"""Tasks of lm_eval on local files: choices, words, sums and texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

WORDS = ("Paris", "mat", "fun", "dull", "true", "one", "two", "three", "good", "bad")
PROMPTS = ("The capital of France is", "the cat sat on the", "good films are", "bad films are")
# Task -> what its YAML says besides its data.
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "num_fewshot": 2,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    },
    "words": {
        "output_type": "loglikelihood",
        "validation_split": "validation",
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{answer}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "sums": {
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 6, "do_sample": False},
        "filter_list": [
            {"name": "strict", "filter": [{"function": "take_first"}]},
            {
                "name": "letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-zA-Z])"},
                    {"function": "take_first"},
                ],
            },
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
            }
        ],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{answer}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


def write_tasks(folder: Path, rows: int = 24, **changes: Any) -> Path:
    """Write the YAML of every task, and its rows; `changes` are for all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for number, split in enumerate(("train", "validation", "test")):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in _rows(rows, number)))
        files[split] = str(path)
    for name, fields in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, **data, **fields, **changes}, sort_keys=False)
        )
    return folder


def _rows(count: int, start: int) -> Iterator[dict[str, Any]]:
    """Rows of which no two are equal, with choices of several lengths; one has a long question."""
    for number in range(start * count, (start + 1) * count):
        choices = [WORDS[(number + step * (1 + number % 3)) % len(WORDS)] for step in range(4)]
        choices[number % 4] += " and the cat"
        asked = f"{PROMPTS[number % 4]} {number}"
        yield {
            "question": f"{asked} " * 150 + asked if number % count == 3 else asked,
            "choices": choices,
            "label": (number * 7) % 4,
            "answer": "mat" if number % 2 else WORDS[number % len(WORDS)],
        }
