"""Loading every kind of model: supported tasks, tensor names, and folders that are refused."""

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
from hubmerge.models.loading import Model, load_model
from hubmerge.specs import Kind
from hubmerge.tasks.heads import zero_shot_head
from hubmerge.weights.checkpoint import open_checkpoint
from tests.models.builders import (
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
WriteModel = Callable[[Path], Any]


def open_clip_folder(folder: Path) -> None:
    write_open_clip(folder, write_transformers(folder.with_name("other")))


# Family -> builder of its folder, a kind of task it supports, and its class in transformers.
FAMILIES: dict[str, tuple[WriteModel, Kind, Any]] = {
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


def shift_weights(model: Model) -> None:
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.add_(0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_saving_keeps_tensor_names(tmp_path: Path, name: str) -> None:
    write_model, kind, model_class = FAMILIES[name]
    write_model(tmp_path / "base")
    base, model = weights(tmp_path / "base"), load_model(tmp_path / "base", kind)
    before = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    torch.testing.assert_close(saved(model, tmp_path / "same"), base, atol=0, rtol=0)
    shift_weights(model)
    changed = saved(model, tmp_path / "changed")
    assert set(changed) == set(base)
    assert all(torch.equal(changed[key], base[key] + 0.5) for key in base)
    torch.testing.assert_close(saved(model, tmp_path / "given", before), base, atol=0, rtol=0)
    if model_class is not None:
        reloaded = model_class.from_pretrained(tmp_path / "changed").state_dict()
        torch.testing.assert_close(reloaded, dict(model.module.state_dict()), atol=0, rtol=0)


def older_bert(state: State) -> State:
    """BERT in its first format: other names, a table of positions, a head that was removed."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    positions = torch.arange(64).unsqueeze(0)
    return {
        **renamed,
        "bert.embeddings.position_ids": positions,
        "cls.seq_relationship.weight": torch.ones(2, WIDTH),
    }


def without_prefix(state: State) -> State:
    """GPT-2 as on the Hub: without its head, and with its attention masks."""
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    return {**renamed, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}


def untied(state: State) -> State:
    """T5 as on the Hub: tied tensors are stored several times."""
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return {**state, **dict.fromkeys(tied, state["shared.weight"])}


@pytest.mark.parametrize(
    ("name", "change", "extra"),
    [
        ("masked bert", older_bert,
         {"bert.embeddings.position_ids", "cls.seq_relationship.weight"}),
        ("gpt2", without_prefix, {"h.0.attn.bias"}),
        ("t5", untied, set()),
        ("clip", lambda s: {**s, "text_model.embeddings.position_ids": torch.arange(12)},
         {"text_model.embeddings.position_ids"}),
    ],
)  # fmt: skip
def test_names_of_older_folders_are_kept(
    tmp_path: Path, name: str, change: Callable[[State], State], extra: set[str]
) -> None:
    write_model, kind, _ = FAMILIES[name]
    write_model(tmp_path / "base")
    rewrite(tmp_path / "base", change)
    base, model = weights(tmp_path / "base"), load_model(tmp_path / "base", kind)
    shift_weights(model)
    changed = saved(model, tmp_path / "changed")
    assert set(changed) == set(base)
    for key, tensor in base.items():
        assert torch.equal(changed[key], tensor if key in extra else tensor + 0.5), key


def test_bfloat16_is_saved_and_loaded_as_float32(tmp_path: Path) -> None:
    tiny_t5(tmp_path / "base").bfloat16().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", "rank")
    shift_weights(model)
    assert {t.dtype for t in saved(model, tmp_path / "saved").values()} == {torch.float32}
    reloaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(reloaded.shared.weight, model.module.shared.weight)


def test_sharded_weights_are_saved_as_one_file(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "one").save_pretrained(tmp_path / "base", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    model = load_model(tmp_path / "base", "text")
    saved(model, tmp_path / "saved")
    assert set(open_checkpoint(tmp_path / "saved").index) == set(model.names.module_names)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["image", "text", "rank", "target"])
def test_supported_kinds_of_tasks(tmp_path: Path, name: str, kind: Kind) -> None:
    write_model, supported, _ = FAMILIES[name]
    write_model(tmp_path / "base")
    language_kinds = {"rank", "target"}
    if kind == supported or {kind, supported} <= language_kinds:
        model = load_model(tmp_path / "base", kind)
        assert model.layout == ("open_clip" if name == "open_clip" else "transformers")
        assert not any(module.training for module in model.module.modules())
        return
    with pytest.raises(CheckpointError, match=f"does not support tasks of kind {kind}") as refused:
        load_model(tmp_path / "base", kind)
    assert refused.value.hint.startswith(f"Tasks of kind {kind} need a ")


@torch.no_grad()
def test_vit_features_and_preprocessing_match_transformers(tmp_path: Path) -> None:
    reference = tiny_vit(tmp_path / "base")
    model = load_model(tmp_path / "base")
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.encoder(images), reference(images).pooler_output)
    image = Image.linear_gradient("L").convert("RGB").resize((40, 30))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "base")
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert (model.transform(augment=False)(image) - expected).abs().max() < 0.05
    assert (model.width, model.name) == (WIDTH, "ViTModel")


@torch.no_grad()
def test_without_a_pooler_features_are_the_first_token(tmp_path: Path) -> None:
    reference = tiny_vit(tmp_path / "base", ViTForImageClassification)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    features = load_model(tmp_path / "base").encoder(images)
    assert torch.equal(features, reference.vit(images).last_hidden_state[:, 0])


@torch.no_grad()
def test_bert_features_are_means_and_labels_are_embedded(tmp_path: Path) -> None:
    reference = tiny_bert(tmp_path / "base")
    model = load_model(tmp_path / "base", "text")
    prompts = ["good films are fun", "bad"]
    encodings = [
        AutoTokenizer.from_pretrained(tmp_path / "base")(p, return_tensors="pt") for p in prompts
    ]
    expected = [reference(**tokens).last_hidden_state.mean(dim=1) for tokens in encodings]
    torch.testing.assert_close(model.encode_text(prompts), torch.cat(expected))
    head = zero_shot_head(model.encode_text, model.scale(), prompts, ["{}"])
    cosines = cosine_similarity(model.encode_text(prompts), head / 20)
    torch.testing.assert_close(cosines, torch.ones(2))
    assert (model.width, model.max_tokens) == (WIDTH, 64)


@pytest.mark.parametrize("write_model", [tiny_gpt2, tiny_llama])
def test_without_a_padding_token_end_of_sequence_is_used(
    tmp_path: Path, write_model: WriteModel
) -> None:
    write_model(tmp_path / "base")
    model = load_model(tmp_path / "base", "rank")
    tokens = model.tokenizer(["good films are fun", "no"], padding=True, return_tensors="pt")
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    short = int(tokens["attention_mask"][1].sum())
    with torch.no_grad():
        padded = model.forward_module(**tokens).logits[1, :short]
        unpadded = model.forward_module(input_ids=tokens["input_ids"][1:, :short]).logits[0]
    torch.testing.assert_close(padded, unpadded)
    assert not model.is_seq2seq


def test_a_t5_learns_from_labels(tmp_path: Path) -> None:
    tiny_t5(tmp_path / "base")
    model = load_model(tmp_path / "base", "target")
    tokens = model.tokenizer(["the cat"], return_tensors="pt")
    model.forward_module(**tokens, labels=tokens["input_ids"]).loss.backward()
    assert all(weight.grad is not None for weight in model.module.parameters())
    assert model.is_seq2seq
    assert model.shares_encoder


def test_missing_weights_are_named(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    lost = ("encoder.layer.1.output.dense.weight", "encoder.layer.1.output.dense.bias")
    rewrite(tmp_path, lambda state: {n: t for n, t in state.items() if n not in lost})
    with pytest.raises(CheckpointError, match=rf"lacks weights for '{lost[0]}' and 1 more"):
        load_model(tmp_path, "text")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    rewrite(tmp_path, lambda state: {**state, "pooler.dense.bias": torch.ones(3)})
    with pytest.raises(CheckpointError, match="cannot be loaded as a model"):
        load_model(tmp_path, "text")


def unset(key: str) -> Callable[[Path], object]:
    return lambda folder: change_json(folder / "tokenizer_config.json", key, value=None)


@pytest.mark.parametrize(
    ("write_model", "kind", "break_it", "sentence"),
    [
        (tiny_vit, "image", lambda f: (f / "preprocessor_config.json").unlink(), "is missing"),
        (tiny_vit, "image",
         lambda f: change_json(f / "preprocessor_config.json", "do_normalize", value=False),
         "does not rescale and normalise"),
        (tiny_gpt2, "rank", unset("eos_token"), "neither a padding nor an end-of-sequence"),
        (tiny_t5, "rank", unset("eos_token"), "no end-of-sequence token"),
        (tiny_t5, "rank",
         lambda f: change_json(f / "config.json", "quantization_config", value={"bits": 4}),
         "is a quantised model"),
        (tiny_t5, "rank", lambda f: (f / "adapter_config.json").write_text("{}"),
         "is an adapter"),
        (tiny_t5, "rank",
         lambda f: change_json(f / "generation_config.json", "auto_map", value={"a": "own.A"}),
         "generation_config.json would run code"),
        (tiny_t5, "rank",
         lambda f: change_json(f / "config.json", "model_type", value="t6"), "a 't6' model"),
        (tiny_t5, "rank",
         lambda f: change_json(f / "config.json", "d_model", value="x"), "cannot be loaded"),
    ],
)  # fmt: skip
def test_refused_models_raise_one_line(
    tmp_path: Path,
    write_model: WriteModel,
    kind: Kind,
    break_it: Callable[[Path], object],
    sentence: str,
) -> None:
    write_model(tmp_path)
    break_it(tmp_path)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        load_model(tmp_path, kind)
    assert "\n" not in refused.value.message


def test_a_kernel_on_the_hub_is_not_fetched(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    change_json(tmp_path / "config.json", "attn_implementation", value="someone/kernel")
    assert load_model(tmp_path, "text").module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architectures", [["BertForNobody"], ["GPT2LMHeadModel"], ["nn"], None])
def test_unsuitable_architectures_are_ignored(tmp_path: Path, architectures: object) -> None:
    tiny_bert(tmp_path)
    change_json(tmp_path / "config.json", "architectures", value=architectures)
    assert load_model(tmp_path, "text").name == "BertModel"
