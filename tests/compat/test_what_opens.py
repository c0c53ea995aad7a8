"""The table "What opens" of the README: each row is made, and merged with what the row adds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import PreTrainedModel

from hubmerge.cards.markdown import escape_markdown
from hubmerge.models.class_model import load_class_model
from tests.command_line import run_command as run
from tests.models.embedders import STACK, tiny_embedder

pytestmark = pytest.mark.usefixtures("running_hub")

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## What opens")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (.+?) \|(.*?)\|(.*?)\|$", SECTION, re.MULTILINE)[1:]

TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
IDS = torch.arange(3, 12)[None]
PIXELS = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
# Builds base and expert in a folder, and returns a check of the merge in it.
Case = Callable[[Path], Callable[[Path], None]]
CASES: dict[str, Case] = {}


def case(start: str) -> Callable[[Case], Case]:
    """A case of the row that starts with these words."""

    def register(make: Case) -> Case:
        CASES[start] = make
        return make

    return register


def with_noise(model: torch.nn.Module, trained_alone: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or not trained_alone:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def llama(tied: bool = True, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**TEXT, **options}, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).eval()


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip


def same_logits(model: Any, model_class: Any = None) -> Callable[[Path], None]:
    """A check that the merge, loaded as this class, has the logits that the model has now."""
    with torch.no_grad():
        expected = logits(model)

    def check(out: Path) -> None:
        merged = (model_class or type(model)).from_pretrained(out).eval()
        with torch.no_grad():
            torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-4)

    return check


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits


def save_pair(folder: Path, tied: bool = True) -> PreTrainedModel:
    model = llama(tied)
    model.save_pretrained(folder / "base")
    with_noise(model)
    model.save_pretrained(folder / "expert")
    return model


@case("full experts saved from an inner, compiled")
def inner_module(folder: Path) -> Callable[[Path], None]:
    model = save_pair(folder)
    rewrite(folder / "expert", lambda t: {
        f"module._orig_mod.{n.removeprefix('model.')}": v for n, v in t.items()})  # fmt: skip
    return same_logits(model)


@case("a head that is stored again")
def stored_head(folder: Path) -> Callable[[Path], None]:
    model = save_pair(folder)
    rewrite(folder / "expert", lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    return same_logits(model)


@case("a head of its own over a base")
def own_head(folder: Path) -> Callable[[Path], None]:
    save_pair(folder)
    model = llama(tied=False)
    with_noise(model)
    model.save_pretrained(folder / "expert")
    return same_logits(model)


@case("masks, positions, frequencies")
def buffers(folder: Path) -> Callable[[Path], None]:
    model = save_pair(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder / "base", lambda t: {**t, name: torch.ones(8)})
    return same_logits(model)


def clip() -> PreTrainedModel:
    torch.manual_seed(0)
    half = {**VISION, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**half, "vocab_size": 64, "max_position_embeddings": 16},
        vision_config=half, projection_dim=16,
    )  # fmt: skip
    return transformers.CLIPModel(config).eval()


def tower_of(whole: Any) -> PreTrainedModel:
    tower = transformers.CLIPVisionModel(whole.config.vision_config).eval()
    state = {n.removeprefix("vision_model."): t for n, t in whole.vision_model.state_dict().items()}
    tower.load_state_dict({name: state[name] for name in tower.state_dict()})
    return tower


def check_tower(whole: Any, expected: Tensor) -> Callable[[Path], None]:
    def check(out: Path) -> None:
        merged = transformers.CLIPModel.from_pretrained(out).eval()
        with torch.no_grad():
            actual = merged.vision_model(PIXELS).pooler_output
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        assert torch.equal(merged.text_projection.weight, whole.text_projection.weight)

    return check


@case("the vision tower of a CLIP")
def vision_tower(folder: Path) -> Callable[[Path], None]:
    whole = clip()
    whole.save_pretrained(folder / "base")
    tower = tower_of(whole)
    with_noise(tower)
    tower.save_pretrained(folder / "expert")
    with torch.no_grad():
        return check_tower(whole, tower(PIXELS).pooler_output)


def llava() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=transformers.LlamaConfig(**TEXT), image_token_index=63,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config).eval()


@case("the language model of a vision-language")
def language_model(folder: Path) -> Callable[[Path], None]:
    whole = llava()
    whole.save_pretrained(folder / "base")
    part = transformers.LlamaForCausalLM(whole.config.text_config).eval()
    part.model.load_state_dict(whole.model.language_model.state_dict())
    part.lm_head.load_state_dict(whole.lm_head.state_dict())
    with_noise(part)
    part.save_pretrained(folder / "expert")
    return same_logits(part, transformers.LlavaForConditionalGeneration)


def bert(folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A saved masked language model, and a classifier with the same body."""
    torch.manual_seed(0)
    fields = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    base = transformers.BertForMaskedLM(transformers.BertConfig(**fields))
    base.save_pretrained(folder / "base")
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**fields, num_labels=3)
    ).eval()
    model.bert.load_state_dict(base.bert.state_dict(), strict=False)
    return base, model


@case("classifiers with heads")
def class_heads(folder: Path) -> Callable[[Path], None]:
    _, model = bert(folder)
    with_noise(model)
    model.save_pretrained(folder / "expert")
    return check_kept_head(model)


def check_kept_head(model: PreTrainedModel) -> Callable[[Path], None]:
    with torch.no_grad():
        expected = logits(model)

    def check(out: Path) -> None:
        kept = load_class_model(out, out / "head-expert.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(logits(kept), expected, atol=1e-5, rtol=0)

    return check


@case("decoders that classify")
def decoder_heads(folder: Path) -> Callable[[Path], None]:
    base = llama()
    base.save_pretrained(folder / "base")
    config = transformers.LlamaConfig(**TEXT, num_labels=3)
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(base.model.state_dict())
    with_noise(model)
    model.save_pretrained(folder / "expert")
    return check_kept_head(model)


@case("more tokens than the base")
def more_tokens(folder: Path) -> Callable[[Path], None]:
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(64)}, "w0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), unk_token="w0"
    )
    model = llama()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    tokenizer.add_tokens(["<a>", "<b>"])
    model.resize_token_embeddings(66, mean_resizing=False)
    with_noise(model)
    model.save_pretrained(folder / "expert")
    tokenizer.save_pretrained(folder / "expert")
    return same_logits(model)


def adapter_of(model: PreTrainedModel, folder: Path, **options: Any) -> Any:
    settings = {"target_modules": ["q_proj"], **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **settings))
    with_noise(adapted.eval(), trained_alone=True)
    adapted.save_pretrained(folder / "expert")
    return adapted


@case("a LoRA of a vision-language model")
def lora_of_llava(folder: Path) -> Callable[[Path], None]:
    model = llava()
    model.save_pretrained(folder / "base")
    adapted = adapter_of(model, folder)
    return same_logits(adapted, transformers.LlavaForConditionalGeneration)


@case("a LoRA with saved embeddings")
def lora_with_embeddings(folder: Path) -> Callable[[Path], None]:
    model = llama()
    model.save_pretrained(folder / "base")
    adapted = adapter_of(model, folder, modules_to_save=["embed_tokens"])
    check_logits = same_logits(adapted, type(model))

    def check(out: Path) -> None:
        check_logits(out)
        assert not json.loads((out / "config.json").read_text())["tie_word_embeddings"]

    return check


@case("a LoRA with a saved head")
def lora_with_head(folder: Path) -> Callable[[Path], None]:
    _, model = bert(folder)
    adapted = adapter_of(model, folder, target_modules=["query"], modules_to_save=["classifier"])

    def check(out: Path) -> None:
        head = load_file(out / "head-expert.safetensors")
        weight = adapted.base_model.model.classifier.modules_to_save.default.weight
        assert torch.equal(head["classifier.weight"], weight)

    return check


@case("`pytorch_model.bin`")
def pickled(folder: Path) -> Callable[[Path], None]:
    model = save_pair(folder)
    (folder / "pickled").mkdir()
    torch.save(model.state_dict(), folder / "pickled" / "pytorch_model.bin")
    shutil.copy(folder / "expert" / "config.json", folder / "pickled")
    shutil.rmtree(folder / "expert")
    return same_logits(model)


@case("embedding models of sentence-transformers")
def embedder(folder: Path) -> Callable[[Path], None]:
    tiny_embedder(folder / "base")
    shutil.copytree(folder / "base", folder / "expert")
    rewrite(folder / "expert", lambda t: {n: v + 0.01 * v.sign() for n, v in t.items()})
    expected = SentenceTransformer(str(folder / "expert"), device="cpu").encode(["a b"])

    def check(out: Path) -> None:
        merged = SentenceTransformer(str(out), device="cpu")
        assert [type(module).__name__ for module in merged] == [*STACK]
        np.testing.assert_allclose(merged.encode(["a b"]), expected, atol=1e-5)

    return check


def test_every_row_has_a_case() -> None:
    assert len(ROWS) == len(CASES)
    for what, _, _ in ROWS:
        assert sum(what.startswith(start) for start in CASES) == 1, what


@pytest.mark.parametrize(("what", "added"), [(what, added.strip()) for what, added, _ in ROWS])
def test_what_opens(tmp_path: Path, what: str, added: str) -> None:
    (make,) = (make for start, make in CASES.items() if what.startswith(start))
    check = make(tmp_path)
    words = ["merge", tmp_path / "expert", "--base", tmp_path / "base", "--method", "average"]
    typed = added.strip("`").split()
    if typed[:1] == ["hubmerge"]:
        imported = run(*typed[1:], tmp_path / "pickled", "--out", tmp_path / "expert")
        assert imported.exit_code == 0, imported.stderr
        typed = []
    if typed:
        refused = run(*words, "--out", tmp_path / "out")
        assert refused.exit_code != 0
        assert typed[0] in refused.stderr
    done = run(*words, *typed, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    check(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "hubmerge.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    for note in manifest["training"].get("notes", ()):
        assert escape_markdown(note) in card
