"""tokenizer_source: rows are merged by token, also where layers come from several models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.command_line import run_command as run
from tests.compat.test_vocabularies import EMBEDDING, HEAD, expert, row, save, word_tokenizer

pytestmark = pytest.mark.usefixtures("running_hub")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and two models with tokens of their own; mergekit 0.1.5 gives the same rows."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=51, tie_word_embeddings=False,
    )  # fmt: skip
    base = save(transformers.LlamaForCausalLM(config), word_tokenizer(), tmp_path / "base")
    expert(base, tmp_path / "first", ["<a>", "<b>"], 1)
    expert(base, tmp_path / "second", ["<b>", "<c>"], 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(folder: Path, text: str) -> Path:
    (folder / "config.yml").write_text(text)
    done = run("merge", "-c", folder / "config.yml", "--out", folder / "out")
    assert done.exit_code == 0, done.stderr
    return folder / "out"


def test_a_token_of_one_model_is_that_of_the_model(models: Path) -> None:
    out = merge(models, (
        "merge_method: task_arithmetic\nbase_model: ./base\nparameters: {weight: 0.7}\n"
        "models: [{model: ./first}, {model: ./second}]\ntokenizer_source: union\n"
    ))  # fmt: skip
    first, second, base = (models / name for name in ("first", "second", "base"))
    torch.testing.assert_close(row(out, "<a>"), row(first, "<a>"))
    mean = (row(first, "<b>") + row(second, "<b>")) / 2
    torch.testing.assert_close(row(out, "<b>"), mean + 0.7 * ((row(first, "<b>") - mean) + (
        row(second, "<b>") - mean)))  # fmt: skip
    changes = row(first, "w7") + row(second, "w7") - 2 * row(base, "w7")
    torch.testing.assert_close(row(out, "w7"), row(base, "w7") + 0.7 * changes)


def test_the_ends_of_a_frankenmerge_have_the_rows_of_the_base(models: Path) -> None:
    out = merge(models, (
        "merge_method: passthrough\nbase_model: ./base\ntokenizer_source: base\nslices:\n"
        "- sources: [{model: ./first, layer_range: [0, 2]}]\n"
        "- sources: [{model: ./second, layer_range: [1, 2]}]\n"
    ))  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert (model.config.vocab_size, model.config.num_hidden_layers) == (51, 3)
    assert torch.equal(row(out, "w7", EMBEDDING), row(models / "first", "w7", EMBEDDING))
    assert torch.equal(row(out, "w7", HEAD), row(models / "second", "w7", HEAD))
