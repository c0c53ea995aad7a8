"""Every kind of model: what goes with what, what its tensors are called, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertForMaskedLM,
    BertModel,
    CLIPModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
    ViTForImageClassification,
    ViTModel,
)

from hubmerge.errors import CheckpointError
from hubmerge.models.loading import Model, open_model
from hubmerge.specs import Kind
from hubmerge.tasks.heads import zero_shot_head
from hubmerge.weights.checkpoint import open_checkpoint
from tests.models.worlds import (
    SIZE,
    WIDTH,
    change_json,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
    write_open_clip,
    write_transformers,
)

State = dict[str, Tensor]
Make = Callable[[Path], Any]


def open_clip_folder(folder: Path) -> None:
    write_open_clip(folder, write_transformers(folder.with_name("other")))


# Each family: how a folder is made, a kind of task it does, and transformers' class for it.
FAMILIES: dict[str, tuple[Make, Kind, Any]] = {
    "open_clip": (open_clip_folder, "image", None),
    "clip": (write_transformers, "image", CLIPModel),
    "vit": (tiny_vit, "image", ViTModel),
    "vit with a head": (
        lambda folder: tiny_vit(folder, ViTForImageClassification),
        "image",
        ViTForImageClassification,
    ),
    "bert": (tiny_bert, "text", BertModel),
    "masked bert": (lambda folder: tiny_bert(folder, BertForMaskedLM), "text", BertForMaskedLM),
    "t5": (tiny_t5, "rank", T5ForConditionalGeneration),
    "gpt2": (tiny_gpt2, "target", GPT2LMHeadModel),
    "llama": (tiny_llama, "rank", LlamaForCausalLM),
    "tied llama": (lambda folder: tiny_llama(folder, tied=True), "target", LlamaForCausalLM),
}


def weights(folder: Path) -> State:
    return load_file(next(folder.glob("*.safetensors")))


def rewrite(folder: Path, change: Callable[[State], State]) -> None:
    """Change the tensors of a transformers folder."""
    state = change(weights(folder))
    save_file(
        {name: tensor.clone() for name, tensor in state.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def saved(model: Model, folder: Path, state: State | None = None) -> State:
    folder.mkdir()
    model.save(folder, state)
    return weights(folder)


def moved(model: Model) -> None:
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.add_(0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_under_the_names_it_came_in(tmp_path: Path, name: str) -> None:
    make, kind, library = FAMILIES[name]
    make(tmp_path / "base")
    base, model = weights(tmp_path / "base"), open_model(tmp_path / "base", kind)
    before = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    torch.testing.assert_close(saved(model, tmp_path / "same"), base, atol=0, rtol=0)
    moved(model)
    changed = saved(model, tmp_path / "changed")
    assert set(changed) == set(base)
    assert all(torch.equal(changed[key], base[key] + 0.5) for key in base)
    torch.testing.assert_close(saved(model, tmp_path / "given", before), base, atol=0, rtol=0)
    if library is not None:
        again = library.from_pretrained(tmp_path / "changed").state_dict()
        torch.testing.assert_close(again, dict(model.module.state_dict()), atol=0, rtol=0)


def older(state: State) -> State:
    """BERT as it was first saved: other names, a table of positions, a head that is gone."""
    named = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    positions = torch.arange(64).unsqueeze(0)
    return {
        **named,
        "bert.embeddings.position_ids": positions,
        "cls.seq_relationship.weight": torch.ones(2, WIDTH),
    }


def without_prefix(state: State) -> State:
    """GPT-2 as it lies on the Hub: saved without its head, with its masks."""
    named = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    return {**named, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}


def each_its_own(state: State) -> State:
    """T5 as it lies on the Hub: what is tied is there several times."""
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return {**state, **dict.fromkeys(tied, state["shared.weight"])}


@pytest.mark.parametrize(
    ("name", "change", "beyond"),
    [
        ("masked bert", older, {"bert.embeddings.position_ids", "cls.seq_relationship.weight"}),
        ("gpt2", without_prefix, {"h.0.attn.bias"}),
        ("t5", each_its_own, set()),
        ("clip", lambda s: {**s, "text_model.embeddings.position_ids": torch.arange(12)},
         {"text_model.embeddings.position_ids"}),
    ],
)  # fmt: skip
def test_names_of_older_folders_are_kept(
    tmp_path: Path, name: str, change: Callable[[State], State], beyond: set[str]
) -> None:
    make, kind, _ = FAMILIES[name]
    make(tmp_path / "base")
    rewrite(tmp_path / "base", change)
    base, model = weights(tmp_path / "base"), open_model(tmp_path / "base", kind)
    moved(model)
    changed = saved(model, tmp_path / "changed")
    assert set(changed) == set(base)
    for key, tensor in base.items():
        assert torch.equal(changed[key], tensor if key in beyond else tensor + 0.5), key


def test_what_came_in_bfloat16_is_saved_and_read_back_in_float32(tmp_path: Path) -> None:
    tiny_t5(tmp_path / "base").bfloat16().save_pretrained(tmp_path / "base")
    model = open_model(tmp_path / "base", "rank")
    moved(model)
    assert {t.dtype for t in saved(model, tmp_path / "saved").values()} == {torch.float32}
    again = T5ForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.shared.weight, model.module.shared.weight)


def test_what_was_several_files_is_saved_as_one(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "one").save_pretrained(tmp_path / "base", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    model = open_model(tmp_path / "base", "text")
    saved(model, tmp_path / "saved")
    assert set(open_checkpoint(tmp_path / "saved").index) == set(model.names.inside)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["image", "text", "rank", "target"])
def test_what_goes_with_what(tmp_path: Path, name: str, kind: Kind) -> None:
    make, own, _ = FAMILIES[name]
    make(tmp_path / "base")
    alike = {"rank", "target"}
    if kind == own or {kind, own} <= alike:
        model = open_model(tmp_path / "base", kind)
        assert model.layout == ("open_clip" if name == "open_clip" else "transformers")
        assert not any(part.training for part in model.module.modules())
        return
    with pytest.raises(CheckpointError, match=f"cannot do a task of kind {kind}") as refused:
        open_model(tmp_path / "base", kind)
    assert refused.value.hint.startswith(f"A task of kind {kind} needs a ")


@torch.no_grad()
def test_a_vit_sees_what_its_processor_and_pooler_make(tmp_path: Path) -> None:
    theirs = tiny_vit(tmp_path / "base")
    model = open_model(tmp_path / "base")
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.encoder(images), theirs(images).pooler_output)
    picture = Image.linear_gradient("L").convert("RGB").resize((40, 30))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "base")
    said = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert (model.transform(augment=False)(picture) - said).abs().max() < 0.05
    assert (model.width, model.name) == (WIDTH, "ViTModel")


@torch.no_grad()
def test_without_a_pooler_the_first_token_speaks(tmp_path: Path) -> None:
    theirs = tiny_vit(tmp_path / "base", ViTForImageClassification)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    seen = open_model(tmp_path / "base").encoder(images)
    assert torch.equal(seen, theirs.vit(images).last_hidden_state[:, 0])


@torch.no_grad()
def test_a_bert_means_its_words_and_embeds_labels(tmp_path: Path) -> None:
    theirs = tiny_bert(tmp_path / "base")
    model = open_model(tmp_path / "base", "text")
    prompts = ["good films are fun", "bad"]
    one = [
        AutoTokenizer.from_pretrained(tmp_path / "base")(p, return_tensors="pt") for p in prompts
    ]
    alone = [theirs(**tokens).last_hidden_state.mean(dim=1) for tokens in one]
    torch.testing.assert_close(model.encode_text(prompts), torch.cat(alone))
    head = zero_shot_head(model.encode_text, model.scale(), prompts, ["{}"])
    cosines = cosine_similarity(model.encode_text(prompts), head / 20)
    torch.testing.assert_close(cosines, torch.ones(2))
    assert (model.width, model.length) == (WIDTH, 64)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_what_has_nothing_to_pad_with_pads_with_its_end(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "base")
    model = open_model(tmp_path / "base", "rank")
    tokens = model.tokenizer(["good films are fun", "no"], padding=True, return_tensors="pt")
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    short = int(tokens["attention_mask"][1].sum())
    with torch.no_grad():
        padded = model.runs(**tokens).logits[1, :short]
        alone = model.runs(input_ids=tokens["input_ids"][1:, :short]).logits[0]
    torch.testing.assert_close(padded, alone)
    assert not model.is_seq2seq


def test_a_t5_learns_from_labels(tmp_path: Path) -> None:
    tiny_t5(tmp_path / "base")
    model = open_model(tmp_path / "base", "target")
    tokens = model.tokenizer(["the cat"], return_tensors="pt")
    model.runs(**tokens, labels=tokens["input_ids"]).loss.backward()
    assert all(weight.grad is not None for weight in model.module.parameters())
    assert model.is_seq2seq
    assert model.shares_encoder


def test_missing_weights_are_named(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    lost = ("encoder.layer.1.output.dense.weight", "encoder.layer.1.output.dense.bias")
    rewrite(tmp_path, lambda state: {n: t for n, t in state.items() if n not in lost})
    with pytest.raises(CheckpointError, match=rf"lacks weights for '{lost[0]}' and 1 more"):
        open_model(tmp_path, "text")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    rewrite(tmp_path, lambda state: {**state, "pooler.dense.bias": torch.ones(3)})
    with pytest.raises(CheckpointError, match="cannot be opened as a model"):
        open_model(tmp_path, "text")


def left_out(key: str) -> Callable[[Path], object]:
    return lambda folder: change_json(folder / "tokenizer_config.json", key, value=None)


@pytest.mark.parametrize(
    ("make", "kind", "break_it", "sentence"),
    [
        (tiny_vit, "image", lambda f: (f / "preprocessor_config.json").unlink(), "is missing"),
        (tiny_vit, "image",
         lambda f: change_json(f / "preprocessor_config.json", "do_normalize", value=False),
         "does not scale and normalise"),
        (tiny_gpt2, "rank", left_out("eos_token"), "no token to pad with"),
        (tiny_t5, "rank", left_out("eos_token"), "no token that ends a text"),
        (tiny_t5, "rank",
         lambda f: change_json(f / "config.json", "quantization_config", value={"bits": 4}),
         "is quantised"),
        (tiny_t5, "rank", lambda f: (f / "adapter_config.json").write_text("{}"),
         "holds an adapter"),
        (tiny_t5, "rank",
         lambda f: change_json(f / "generation_config.json", "auto_map", value={"a": "own.A"}),
         "generation_config.json asks for code"),
        (tiny_t5, "rank",
         lambda f: change_json(f / "config.json", "model_type", value="t6"), "a 't6' model"),
    ],
)  # fmt: skip
def test_refused_in_a_sentence(
    tmp_path: Path, make: Make, kind: Kind, break_it: Callable[[Path], object], sentence: str
) -> None:
    make(tmp_path)
    break_it(tmp_path)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        open_model(tmp_path, kind)
    assert "\n" not in refused.value.message


def test_a_kernel_of_somebody_is_not_fetched(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    change_json(tmp_path / "config.json", "attn_implementation", value="someone/kernel")
    assert open_model(tmp_path, "text").module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("said", [["BertForNobody"], ["GPT2LMHeadModel"], ["nn"], None])
def test_a_class_that_is_not_its_own_is_passed_over(tmp_path: Path, said: object) -> None:
    tiny_bert(tmp_path)
    change_json(tmp_path / "config.json", "architectures", value=said)
    assert open_model(tmp_path, "text").name == "BertModel"
