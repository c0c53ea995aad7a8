"""Experts with tokens of their own: rows are merged by token, and the tokenizer follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import Result

from hubmerge.merging.registry import METHODS
from hubmerge.opening.matched_inputs import match_alone
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import plain_choice
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool
from hubmerge.source import Source
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.match_options import MatchOptions
from tests.command_line import run_command as run

pytestmark = pytest.mark.usefixtures("running_hub")

WORDS = [f"w{number}" for number in range(50)]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def word_tokenizer() -> Any:
    model = tokenizers.models.WordLevel({w: n for n, w in enumerate(["<unk>", *WORDS])}, "<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def expert(base: Path, folder: Path, tokens: list[str], seed: int) -> Path:
    """A fine-tune of the base with these tokens more."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(tokens, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return save(model, tokenizer, folder)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=51, tie_word_embeddings=request.param,
    )  # fmt: skip
    return save(transformers.LlamaForCausalLM(config), word_tokenizer(), tmp_path / "base")


def merge(base: Path, out: Path, experts: list[Path], *options: str) -> Result:
    return run("merge", *experts, "--base", base, "--method", "average", "--out", out, *options)


def row(folder: Path, token: str, tensor: str = EMBEDDING) -> torch.Tensor:
    number = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(token)
    return load_file(folder / "model.safetensors")[tensor][number]


def test_an_expert_with_more_tokens_is_refused_by_default(base: Path, tmp_path: Path) -> None:
    more = expert(base, tmp_path / "more", ["<a>", "<b>"], 1)
    refused = merge(base, tmp_path / "out", [more])
    assert refused.exit_code == 1
    assert "--vocabulary base or --vocabulary union" in refused.stderr


def test_one_expert_with_the_union_is_the_expert(base: Path, tmp_path: Path) -> None:
    more = expert(base, tmp_path / "more", ["<a>", "<b>"], 1)
    done = merge(base, tmp_path / "out", [more], "--vocabulary", "union")
    assert done.exit_code == 0, done.stderr
    assert "Added to the vocabulary: 2 tokens (<a>, <b>)" in done.stderr
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        for folder in (tmp_path / "out", more)
    ]
    text = "w1 <b> w3 <a> w49"
    ids = [
        transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
        for folder in (tmp_path / "out", more)
    ]
    assert torch.equal(*ids)
    with torch.no_grad():
        ours, theirs = (model(ids[0]).logits for model in models)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert models[0].config.vocab_size == 53


def test_rows_are_merged_by_token_and_not_by_number(base: Path, tmp_path: Path) -> None:
    first = expert(base, tmp_path / "first", ["<a>", "<b>"], 1)
    second = expert(base, tmp_path / "second", ["<b>", "<c>"], 2)
    for out, experts in (("out", [first, second]), ("swapped", [second, first])):
        done = merge(base, tmp_path / out, experts, "--vocabulary", "union")
        assert done.exit_code == 0, done.stderr
    out = tmp_path / "out"
    names = ("model.safetensors", "tokenizer.json", "config.json")
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "swapped" / name).read_bytes()
    for tensor in load_file(out / "model.safetensors"):
        if tensor not in (EMBEDDING, HEAD):
            continue
        for token in ("w7", "<b>"):
            mean = (row(first, token, tensor) + row(second, token, tensor)) / 2
            torch.testing.assert_close(row(out, token, tensor), mean)
        torch.testing.assert_close(row(out, "<a>", tensor), row(first, "<a>", tensor))
        torch.testing.assert_close(row(out, "<c>", tensor), row(second, "<c>", tensor))


def test_the_tokens_of_the_base_alone(base: Path, tmp_path: Path) -> None:
    more = expert(base, tmp_path / "more", ["<a>"], 1)
    done = merge(base, tmp_path / "out", [more], "--vocabulary", "base")
    assert done.exit_code == 0, done.stderr
    assert "1 token (<a>)" in done.stderr
    merged, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "out", more))
    torch.testing.assert_close(merged[EMBEDDING], theirs[EMBEDDING][:51])
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_an_adapter_with_saved_embeddings_of_more_tokens(base: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<a>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tied = model.config.tie_word_embeddings
    saved = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved,
                             init_lora_weights=False)  # fmt: skip
    adapted = peft.get_peft_model(model, config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save(adapted, tokenizer, tmp_path / "lora")
    refused = merge(base, tmp_path / "out", [tmp_path / "lora"])
    assert "another number of tokens" in refused.stderr
    assert "--vocabulary" in refused.stderr
    done = merge(base, tmp_path / "out", [tmp_path / "lora"], "--vocabulary", "union")
    assert done.exit_code == 0, done.stderr
    ids = tokenizer("w1 <a> w3", return_tensors="pt").input_ids
    result = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        ours, theirs = result(ids).logits, adapted(ids).logits
    if tied:  # the head of the adapter's model has no row of the adapter for the new token
        ours, theirs = ours[..., :51], theirs[..., :51]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_token_in_the_row_of_another_one_is_noted(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    path.write_text(path.read_text().replace('"w49"', '"<x>"'))
    done = merge(base, tmp_path / "out", [tmp_path / "other"])
    assert done.exit_code == 0
    assert "1 token (<x>) in rows where the base has other tokens" in " ".join(done.stderr.split())
    refused = merge(base, tmp_path / "union", [tmp_path / "other"], "--vocabulary", "union")
    assert "cannot be added to another one" in refused.stderr
    by_token = merge(base, tmp_path / "base-only", [tmp_path / "other"], "--vocabulary", "base")
    assert "lacks 1 token (w49)" in by_token.stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"vocab": {"a": -1}}}', "{}"])
def test_a_tokenizer_that_cannot_be_read(base: Path, tmp_path: Path, content: str) -> None:
    more = expert(base, tmp_path / "more", ["<a>"], 1)
    (more / "tokenizer.json").write_text(content)
    refused = merge(base, tmp_path / "out", [more], "--vocabulary", "union")
    assert refused.exit_code == 1
    assert "save_pretrained" in refused.stderr
    assert not (tmp_path / "out").exists()
    (more / "tokenizer.json").unlink()
    refused = merge(base, tmp_path / "out", [more], "--vocabulary", "base")
    assert "no tokenizer that can be read" in refused.stderr


def test_padding_rows_stay(tmp_path: Path) -> None:
    """Rows after the last token, in a table padded to a multiple of 64."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    base = save(transformers.LlamaForCausalLM(config), word_tokenizer(), tmp_path / "base")
    more = expert(base, tmp_path / "more", ["<a>"], 1)  # 52 rows
    done = merge(base, tmp_path / "out", [more], "--vocabulary", "union")
    assert done.exit_code == 0, done.stderr
    merged, old = (load_file(f / "model.safetensors")[EMBEDDING] for f in (tmp_path / "out", base))
    assert merged.shape == (64, 16)
    assert torch.equal(merged[52:], old[52:])
    torch.testing.assert_close(row(tmp_path / "out", "<a>"), row(more, "<a>"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 64


def adapter_with_embeddings(base: Path, folder: Path, tokens: list[str]) -> Path:
    """A LoRA that saved the input embedding with these tokens more, and not the head."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(tokens)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    save(peft.get_peft_model(model, config), tokenizer, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    stored = {name: tensor for name, tensor in weights.items() if "lm_head" not in name}
    save_file(stored, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("base", [False], indirect=True, ids=["untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_no_expert_has_is_the_mean_of_the_bases(
    base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model.save_pretrained(base)
    lora = adapter_with_embeddings(base, tmp_path / "lora", ["<a>"])
    done = merge(base, tmp_path / "out", [lora], "--vocabulary", "union")
    assert done.exit_code == 0, done.stderr
    mean = load_file(base / "model.safetensors")[HEAD].double().mean(dim=0).to(dtype)
    torch.testing.assert_close(row(tmp_path / "out", "<a>", HEAD), mean)
    trained = load_file(lora / "adapter_model.safetensors")
    embedding = next(tensor for name, tensor in trained.items() if "embed_tokens" in name)
    torch.testing.assert_close(row(tmp_path / "out", "<a>"), embedding[51].to(dtype))


def test_an_expert_without_token_tensors_needs_no_tokenizer(base: Path, tmp_path: Path) -> None:
    more = expert(base, tmp_path / "more", ["<a>"], 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    done = merge(base, tmp_path / "out", [more, tmp_path / "lora"], "--vocabulary", "union")
    assert done.exit_code == 0, done.stderr
    assert "lora lacks" not in done.stderr
    torch.testing.assert_close(row(tmp_path / "out", "<a>"), row(more, "<a>"))


def test_a_token_beyond_the_embedding_has_no_row(base: Path, tmp_path: Path) -> None:
    more = expert(base, tmp_path / "more", ["<a>"], 1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(more)
    tokenizer.add_tokens(["<late>"])
    tokenizer.save_pretrained(more)
    done = merge(base, tmp_path / "out", [more], "--vocabulary", "union")
    assert done.exit_code == 0, done.stderr
    assert len(load_file(tmp_path / "out" / "model.safetensors")[EMBEDDING]) == 52
    assert "<late>" not in (tmp_path / "out" / "tokenizer.json").read_text()


def test_a_selection_measures_the_merge_of_the_bases_tokens(base: Path, tmp_path: Path) -> None:
    """What `select --vocabulary base` measures in memory is what `merge` writes."""
    folders = [expert(base, tmp_path / n, [f"<{n}>"], seed) for seed, n in enumerate("ab", 1)]
    done = merge(base, tmp_path / "out", folders, "--vocabulary", "base")
    assert done.exit_code == 0, done.stderr
    opened, options = open_checkpoint(base), MatchOptions(vocabulary="base")
    experts = {folder.name: open_checkpoint(folder) for folder in folders}
    pool = Pool(
        base=Source("base", sha="0", digest="0"),
        base_checkpoint=opened,
        tasks=(),
        candidates=tuple(
            (Candidate(Source(name, sha=checkpoint.digest(), digest=name)),)
            for name, checkpoint in experts.items()
        ),
        open=lambda candidate: match_alone(
            opened, experts[candidate.source.label], candidate.source.label, options
        ),
        options=options,
    )
    merger = MemoryMerger(pool, METHODS["average"])
    measured = dict(merger.merged_tensors(plain_choice((0, 0), {})))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert measured.keys() == written.keys()
    for name, values in measured.items():
        assert torch.equal(torch.from_numpy(values), written[name]), name
