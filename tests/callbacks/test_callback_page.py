"""The Python in docs/callback.md runs, with what its reader has: model, rows, arguments, loop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import HfApi
from transformers import AutoTokenizer, Trainer, TrainingArguments, default_data_collator

from tests.callbacks.builders import QUIET, load, tags, token_rows

PAGE = Path(__file__).parents[2] / "docs" / "callback.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
TASK = """
name: sums
kind: target
data: {path: rows.jsonl}
splits: {test: {of: train, fraction: 0.2}}
prompt: "{{ question }}"
target: "{{ answer }}"
"""


@pytest.fixture
def names(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page takes for granted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.yaml").write_text(TASK)
    row = '{"question": "one and one", "answer": "two"}\n'
    (tmp_path / "rows.jsonl").write_text(row * 10)
    model, rows = load(base), token_rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train_step(number: int) -> None:
        row = rows[number]
        model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def collated(*arguments: Any, **options: Any) -> Trainer:
        return Trainer(*arguments, data_collator=default_data_collator, **options)

    return {
        "Trainer": collated,
        "model": model,
        "rows": rows,
        "tokenizer": AutoTokenizer.from_pretrained(base),
        "args": TrainingArguments(str(tmp_path / "out"), max_steps=8, **QUIET),
        "accelerator": Accelerator(cpu=True),
        "train_step": train_step,
        "measure": lambda: 0.5,
    }


@pytest.mark.parametrize(("block", "repo", "steps"), [
    (0, "me/sums", (1, 2, 4, 8)), (2, "me/dates", (1, 16, 2, 4, 8)),
])  # fmt: skip
def test_the_examples_run(
    block: int, repo: str, steps: tuple[int, ...], names: dict[str, Any], api: HfApi
) -> None:
    exec(compile(BLOCKS[block], str(PAGE), "exec"), names)  # noqa: S102
    assert list(tags(api, repo)) == [f"step{step}" for step in steps]


def test_the_other_examples_are_python() -> None:
    assert len(BLOCKS) == 3
    compile(BLOCKS[1], str(PAGE), "exec")
