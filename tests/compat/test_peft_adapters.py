"""Adapters are peft's own: whoever has the base and plain peft gets our outputs from our folder."""

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

from hubmerge.models.adapter import Adapted, adapt, apply_adapter
from hubmerge.models.layers import linear_layers
from hubmerge.models.loading import open_model
from hubmerge.models.recompute import recompute
from hubmerge.specs import Kind, TrainSpec
from tests.models.worlds import (
    LAYERS,
    SIZE,
    WIDTH,
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
Run = Callable[[Any, Any], Tensor]  # the natural base, its PeftModel -> what comes out


@dataclass(frozen=True)
class Family:
    """A family of models: how its tiny one is made, opened by its own library, and run."""

    make: Callable[[Path], object]
    kind: Kind
    natural: Callable[[Path], Any]
    run: Run
    tunes: tuple[str, ...]
    targets: str | list[str]


def both_clips(folder: Path) -> None:
    model = write_transformers(folder.with_name("transformers"))
    write_open_clip(folder, model)


def mean(base: Any, _: Any) -> Tensor:
    hidden = base.base_model(**TEXT).last_hidden_state * MASK.unsqueeze(-1)
    return hidden.sum(1) / MASK.sum(1, keepdim=True)


def logits(_: Any, peft: Any) -> Tensor:
    return peft(**TEXT, labels=IDS).logits


def local(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder}").eval()


ENCODER, LANGUAGE = ("lora", "dora", "ia3"), ("lora", "dora", "ia3", "prefix")
FAMILIES = {
    "open_clip": Family(
        both_clips, "image", local, lambda base, _: base.encode_image(IMAGES), ("lora",),
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
CASES = [(name, tune) for name, family in FAMILIES.items() for tune in family.tunes]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for name, family in FAMILIES.items():
        family.make(root / name)
    return {name: root / name for name in FAMILIES}


def spec(tune: str, **said: Any) -> TrainSpec:
    size = {} if tune == "ia3" else {"rank": 2}  # which has none
    return TrainSpec(base=BASE, task="t", to="me/t", tune=tune, **{**size, **said})


def outputs(adapted: Adapted, name: str) -> Tensor:
    """What the adapted model says, run as training runs it."""
    family, model = FAMILIES[name], adapted.model
    if family.kind == "image":
        return model.encoder(IMAGES)
    if family.kind == "text":
        return model.encoder(IDS, MASK)
    return model.runs(**TEXT, labels=IDS).logits


def trained(adapted: Adapted) -> dict[str, Tensor]:
    return {n: p for n, p in adapted.peft.named_parameters() if p.requires_grad}


def stir(adapted: Adapted) -> None:
    """Away from the start, where half of LoRA's gradients are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in trained(adapted).values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def saved(adapted: Adapted, folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir()
    adapted.save(folder, state)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_an_adapter_trains_and_others_get_the_same_from_it(
    bases: dict[str, Path], tmp_path: Path, name: str, tune: str
) -> None:
    family, base = FAMILIES[name], bases[name]
    adapted = adapt(open_model(base, family.kind), spec(tune), BASE, SHA)
    plain = family.run(*[family.natural(base)] * 2).detach()
    stir(adapted)
    outputs(adapted, name).square().mean().backward()
    dead = [n for n, p in trained(adapted).items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
    assert all(p.grad is None for p in adapted.peft.parameters() if not p.requires_grad)

    ours = outputs(adapted, name).detach()
    assert (ours - plain).abs().max() > 1e-3
    folder = saved(adapted, tmp_path / "adapter")
    assert sorted(contents(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    with torch.no_grad():
        fresh = family.natural(base).eval()
        theirs = family.run(fresh, PeftModel.from_pretrained(fresh, str(folder)))
        again = outputs(apply_adapter(open_model(base, family.kind), folder), name)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_the_same_seed_gives_the_same_bytes(
    bases: dict[str, Path], tmp_path: Path, name: str, tune: str
) -> None:
    def made(where: str, **said: Any) -> Adapted:
        torch.manual_seed(len(where))  # whatever was drawn before
        return adapt(open_model(bases[name], FAMILIES[name].kind), spec(tune, **said), BASE, SHA)

    one, two = made("one"), made("other")
    state = {n: t.clone() for n, t in one.module.state_dict().items()}
    first = contents(saved(one, tmp_path / "one"))
    assert first == contents(saved(two, tmp_path / "two"))
    stir(two)
    assert first != contents(saved(two, tmp_path / "stirred"))
    assert first == contents(saved(two, tmp_path / "by_state", state))
    if tune != "ia3":  # which starts from ones
        assert first != contents(saved(made("one", seed=1), tmp_path / "seed"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_names_base_and_layers(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    model = open_model(bases[name], FAMILIES[name].kind)
    layers = linear_layers(model)
    adapted = adapt(model, spec("lora"), BASE, SHA)
    config = json.loads((saved(adapted, tmp_path / "a") / "adapter_config.json").read_text())
    assert config["target_modules"] == FAMILIES[name].targets
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, SHA)
    assert config["inference_mode"] is True
    changed = {n.split(".lora_")[0] for n in trained(adapted)}
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
        adapted = adapt(open_model(bases[name]), spec("lora"), BASE, SHA)
        assert sum(p.numel() for p in trained(adapted).values()) == count


@pytest.mark.parametrize(
    ("rank", "alpha"), [(8, 32), (16, 45), (32, 64), (64, 90), (128, 128), (256, 181)]
)
def test_ranks_keep_the_papers_scaling(
    bases: dict[str, Path], tmp_path: Path, rank: int, alpha: int
) -> None:
    adapted = adapt(open_model(bases["vit"]), spec("lora", rank=rank), BASE, SHA)
    text = (saved(adapted, tmp_path / "a") / "adapter_config.json").read_text()
    assert f'"lora_alpha": {alpha},' in text
    layer = adapted.peft.base_model.model.layers[0].mlp.fc1
    assert layer.scaling["default"] == alpha / rank
    rank_stable = adapt(open_model(bases["vit"]), spec("lora", rank=rank, rslora=True), BASE, SHA)
    layer = rank_stable.peft.base_model.model.layers[0].mlp.fc1
    assert layer.scaling["default"] == pytest.approx(alpha / rank**0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_leaves_the_base_as_it_was(bases: dict[str, Path], name: str) -> None:
    adapted = adapt(open_model(bases[name], FAMILIES[name].kind), spec("lora"), BASE, SHA)
    before = {n: t.clone() for n, t in adapted.module.state_dict().items()}
    optimizer = torch.optim.AdamW(trained(adapted).values(), lr=0.1)
    for _ in range(5):
        outputs(adapted, name).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = adapted.module.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(trained(adapted))


def gradients(adapted: Adapted, name: str) -> dict[str, Tensor]:
    stir(adapted)
    torch.manual_seed(0)  # dropout
    adapted.peft.train()
    outputs(adapted, name).square().mean().backward()
    return {n: p.grad for n, p in trained(adapted).items() if p.grad is not None}


def count_calls(adapted: Adapted) -> list[None]:
    """A list that grows by one whenever the first layer with an adapter is run."""
    calls: list[None] = []
    first = next(layer for layer in adapted.peft.modules() if hasattr(layer, "lora_A"))
    first.register_forward_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputing_changes_no_gradient(bases: dict[str, Path], name: str) -> None:
    kind = FAMILIES[name].kind
    kept, again = (adapt(open_model(bases[name], kind), spec("lora"), BASE, SHA) for _ in "ab")
    recompute(again.model)
    once, twice = (count_calls(adapted) for adapted in (kept, again))
    expected, found = gradients(kept, name), gradients(again, name)
    assert set(found) == set(trained(again))
    torch.testing.assert_close(found, expected)
    assert (len(once), len(twice)) == (1, 2)
