"""Adapters are plain peft adapters: peft alone gives the same outputs from our folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertForMaskedLM,
    CLIPModel,
)

from hubmerge.models.adapter import AdaptedModel, add_adapter, apply_adapter
from hubmerge.models.layers import linear_layers
from hubmerge.models.recompute import enable_recompute
from hubmerge.specs import Kind, TrainSpec
from tests.models.builders import (
    LAYERS,
    SIZE,
    WIDTH,
    load_copy,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
    write_open_clip,
    write_transformers,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft's own
IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(5, 200, (2, 6), generator=torch.Generator().manual_seed(2))
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
TEXT = {"input_ids": IDS, "attention_mask": MASK}
BASE, SHA = "someone/base", "0123456789" * 4
Run = Callable[[Any, Any], Tensor]  # the base, its PeftModel -> the output


@dataclass(frozen=True)
class Family:
    """A family of models: how to write its tiny model, load it with its own library, and run it."""

    write_base: Callable[[Path], object]
    kind: Kind
    load: Callable[[Path], Any]
    run: Run
    methods: tuple[str, ...]
    targets: str | list[str]


def write_open_clip_base(folder: Path) -> None:
    model = write_transformers(folder.with_name("transformers"))
    write_open_clip(folder, model)


def mean(base: Any, _: Any) -> Tensor:
    hidden = base.base_model(**TEXT).last_hidden_state * MASK.unsqueeze(-1)
    return hidden.sum(1) / MASK.sum(1, keepdim=True)


def logits(_: Any, peft: Any) -> Tensor:
    return peft(**TEXT, labels=IDS).logits


def load_open_clip(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder}").eval()


ENCODER, LANGUAGE = ("lora", "dora", "ia3"), ("lora", "dora", "ia3", "prefix")
FAMILIES = {
    "open_clip": Family(
        write_open_clip_base, "image", load_open_clip,
        lambda base, _: base.encode_image(IMAGES), ("lora",),
        r"visual\.transformer\.resblocks\..*\.(attn|c_fc|c_proj)",
    ),
    "clip": Family(
        write_transformers, "image", CLIPModel.from_pretrained,
        lambda base, _: base.get_image_features(IMAGES).pooler_output, ENCODER,
        r"vision_model\.encoder\.layers\..*\.(fc1|fc2|k_proj|out_proj|q_proj|v_proj)",
    ),
    "vit": Family(
        tiny_vit, "image", AutoModel.from_pretrained,
        lambda base, _: base(IMAGES).pooler_output, ENCODER,
        ["fc1", "fc2", "k_proj", "o_proj", "q_proj", "v_proj"],
    ),
    "bert": Family(
        tiny_bert, "text", AutoModel.from_pretrained, mean, ENCODER,
        ["intermediate.dense", "key", "output.dense", "query", "value"],
    ),
    "masked": Family(
        lambda folder: tiny_bert(folder, BertForMaskedLM), "text",
        AutoModelForMaskedLM.from_pretrained, mean, ("lora",),
        ["intermediate.dense", "key", "output.dense", "query", "value"],
    ),
    "t5": Family(
        tiny_t5, "rank", AutoModelForSeq2SeqLM.from_pretrained, logits, LANGUAGE,
        ["k", "o", "q", "v", "wi", "wo"],
    ),
    "gpt2": Family(
        tiny_gpt2, "target", AutoModelForCausalLM.from_pretrained, logits, LANGUAGE,
        ["c_attn", "c_fc", "c_proj"],
    ),
    "llama": Family(
        tiny_llama, "target", AutoModelForCausalLM.from_pretrained, logits, LANGUAGE,
        ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    ),
}  # fmt: skip
# Every family and every method is in the fast suite once.
_FAST = {
    "open_clip": "lora", "clip": "dora", "vit": "ia3", "bert": "lora", "masked": "lora",
    "t5": "prefix", "gpt2": "lora", "llama": "dora",
}  # fmt: skip
CASES = [
    pytest.param(name, tune, marks=() if _FAST[name] == tune else pytest.mark.slow)
    for name, family in FAMILIES.items()
    for tune in family.methods
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for name, family in FAMILIES.items():
        family.write_base(root / name)
    return {name: root / name for name in FAMILIES}


def spec(tune: str, **options: Any) -> TrainSpec:
    size = {} if tune == "ia3" else {"rank": 2}  # which has none
    return TrainSpec(base=BASE, task="t", to="me/t", tune=tune, **{**size, **options})


def predict(adapted: AdaptedModel, name: str) -> Tensor:
    """The output of the adapted model, run as in training."""
    family, model = FAMILIES[name], adapted.model
    if family.kind == "image":
        return model.encoder(IMAGES)
    if family.kind == "text":
        return model.encoder(IDS, MASK)
    return model.forward_module(**TEXT, labels=IDS).logits


def trained_parameters(adapted: AdaptedModel) -> dict[str, Tensor]:
    return {n: p for n, p in adapted.peft_model.named_parameters() if p.requires_grad}


def randomize(adapted: AdaptedModel) -> None:
    """Move away from the initialisation, where half of LoRA's gradients are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in trained_parameters(adapted).values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def save_adapter(
    adapted: AdaptedModel, folder: Path, state: dict[str, Tensor] | None = None
) -> Path:
    folder.mkdir()
    adapted.save(folder, state)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_adapter_trains_and_peft_gets_the_same_outputs(
    bases: dict[str, Path], tmp_path: Path, name: str, tune: str
) -> None:
    family, base = FAMILIES[name], bases[name]
    adapted = add_adapter(load_copy(base, family.kind), spec(tune), BASE, SHA)
    plain = family.run(*[family.load(base)] * 2).detach()
    randomize(adapted)
    predict(adapted, name).square().mean().backward()
    without_gradient = [
        n
        for n, p in trained_parameters(adapted).items()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not without_gradient
    assert all(p.grad is None for p in adapted.peft_model.parameters() if not p.requires_grad)

    output = predict(adapted, name).detach()
    assert (output - plain).abs().max() > 1e-3
    folder = save_adapter(adapted, tmp_path / "adapter")
    assert sorted(read_files(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    with torch.no_grad():
        fresh = family.load(base).eval()
        peft_output = family.run(fresh, PeftModel.from_pretrained(fresh, str(folder)))
        reloaded = predict(apply_adapter(load_copy(base, family.kind), folder), name)
    torch.testing.assert_close(peft_output, output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reloaded, output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_the_same_seed_gives_the_same_bytes(
    bases: dict[str, Path], tmp_path: Path, name: str, tune: str
) -> None:
    def make_adapted(where: str, **options: Any) -> AdaptedModel:
        torch.manual_seed(len(where))  # any state of the generator
        return add_adapter(
            load_copy(bases[name], FAMILIES[name].kind), spec(tune, **options), BASE, SHA
        )

    one, two = make_adapted("one"), make_adapted("other")
    state = {n: t.clone() for n, t in one.module.state_dict().items()}
    first = read_files(save_adapter(one, tmp_path / "one"))
    assert first == read_files(save_adapter(two, tmp_path / "two"))
    randomize(two)
    assert first != read_files(save_adapter(two, tmp_path / "stirred"))
    assert first == read_files(save_adapter(two, tmp_path / "by_state", state))
    if tune != "ia3":  # which starts with ones
        assert first != read_files(save_adapter(make_adapted("one", seed=1), tmp_path / "seed"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_names_base_and_layers(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    model = load_copy(bases[name], FAMILIES[name].kind)
    layers = linear_layers(model)
    adapted = add_adapter(model, spec("lora"), BASE, SHA)
    config = json.loads((save_adapter(adapted, tmp_path / "a") / "adapter_config.json").read_text())
    assert config["target_modules"] == FAMILIES[name].targets
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, SHA)
    assert config["inference_mode"] is True
    changed = {n.split(".lora_")[0] for n in trained_parameters(adapted)}
    inner = {f"base_model.model.{layer}" for layer in layers}
    assert changed - {n for n in changed if n.endswith("attn.base_layer.out_proj")} == inner


def test_trainable_weights_counted_by_hand(bases: dict[str, Path]) -> None:
    rank, mlp = 2, 4 * WIDTH
    square, up = rank * (WIDTH + WIDTH), rank * (WIDTH + mlp)
    counts = {
        "clip": LAYERS * (4 * square + 2 * up),
        # Queries, keys and values share one A; their B is three times as long.
        "open_clip": LAYERS * (rank * (WIDTH + 3 * WIDTH) + square + 2 * up),
    }
    for name, count in counts.items():
        adapted = add_adapter(load_copy(bases[name]), spec("lora"), BASE, SHA)
        assert sum(p.numel() for p in trained_parameters(adapted).values()) == count


@pytest.mark.parametrize(
    ("rank", "alpha"), [(8, 32), (16, 45), (32, 64), (64, 90), (128, 128), (256, 181)]
)
def test_scaling_by_rank_equals_the_papers(
    bases: dict[str, Path], tmp_path: Path, rank: int, alpha: int
) -> None:
    adapted = add_adapter(load_copy(bases["vit"]), spec("lora", rank=rank), BASE, SHA)
    text = (save_adapter(adapted, tmp_path / "a") / "adapter_config.json").read_text()
    assert f'"lora_alpha": {alpha},' in text
    layer = adapted.peft_model.base_model.model.layers[0].mlp.fc1
    assert layer.scaling["default"] == alpha / rank
    rank_stable = add_adapter(
        load_copy(bases["vit"]), spec("lora", rank=rank, rslora=True), BASE, SHA
    )
    layer = rank_stable.peft_model.base_model.model.layers[0].mlp.fc1
    assert layer.scaling["default"] == pytest.approx(alpha / rank**0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_does_not_change_the_base(bases: dict[str, Path], name: str) -> None:
    adapted = add_adapter(load_copy(bases[name], FAMILIES[name].kind), spec("lora"), BASE, SHA)
    before = {n: t.clone() for n, t in adapted.module.state_dict().items()}
    optimizer = torch.optim.AdamW(trained_parameters(adapted).values(), lr=0.1)
    for _ in range(5):
        predict(adapted, name).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = adapted.module.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(
        trained_parameters(adapted)
    )


def gradients(adapted: AdaptedModel, name: str) -> dict[str, Tensor]:
    randomize(adapted)
    torch.manual_seed(0)  # dropout
    adapted.peft_model.train()
    predict(adapted, name).square().mean().backward()
    return {n: p.grad for n, p in trained_parameters(adapted).items() if p.grad is not None}


def count_calls(adapted: AdaptedModel) -> list[None]:
    """A list that gets an element whenever the first layer with an adapter is run."""
    calls: list[None] = []
    first = next(layer for layer in adapted.peft_model.modules() if hasattr(layer, "lora_A"))
    first.register_forward_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputing_changes_no_gradient(bases: dict[str, Path], name: str) -> None:
    kind = FAMILIES[name].kind
    stored, recomputed = (
        add_adapter(load_copy(bases[name], kind), spec("lora"), BASE, SHA) for _ in "ab"
    )
    enable_recompute(recomputed.model)
    once, twice = (count_calls(adapted) for adapted in (stored, recomputed))
    expected, actual = gradients(stored, name), gradients(recomputed, name)
    assert set(actual) == set(trained_parameters(recomputed))
    torch.testing.assert_close(actual, expected)
    assert (len(once), len(twice)) == (1, 2)
