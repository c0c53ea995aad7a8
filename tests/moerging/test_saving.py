"""A mixture's folder: read back it says the same, and nothing that was put into it goes unseen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hubmerge.errors import CheckpointError
from hubmerge.models.adapter import apply_adapter
from hubmerge.moerging.moe_model import Mixture, read_mixture
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER, RouterConfig
from tests.models.worlds import change_json
from tests.moerging.networks import (
    NETWORKS,
    answer,
    contents,
    lora,
    mixture,
    opened,
    stepped,
    write,
)

WEIGHTS = "adapter_model.safetensors"
FIRST = "layers.0.attention.k_proj"  # of a ViT, by name of its module


def saved(made: Mixture, folder: Path) -> Path:
    folder.mkdir()
    made.save(folder)
    return folder


def read(name: str, base: Path, folder: Path) -> Mixture:
    made = read_mixture(opened(name, base), open_checkpoint(base), folder)
    made.model.module.eval()
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_and_saved_it_says_the_same(name: str, tmp_path: Path) -> None:
    base = write(name, tmp_path / "base")
    experts = [
        lora(name, base, tmp_path / "mnist", 1),
        lora(name, base, tmp_path / "svhn", 2, r=3, use_rslora=True),
    ]
    made = mixture(name, base, experts, 2, RouterConfig(signed=True, temperature=2.0))
    stepped(name, made)
    folder = saved(made, tmp_path / "made")
    again = read(name, base, folder)
    assert torch.equal(answer(name, again.model), answer(name, made.model))
    assert again.config == made.config
    assert contents(saved(again, tmp_path / "again")) == contents(folder)
    alone(name, base, folder / EXPERTS / "svhn")


def alone(name: str, base: Path, expert: Path) -> None:
    """An expert of a mixture is what peft and a mixture of one make of it."""
    ours = mixture(name, base, [expert])
    theirs = answer(name, apply_adapter(opened(name, base), expert).model)
    found = answer(name, ours.model)
    assert (found - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    PeftModel.from_pretrained(opened(name, base).module, str(expert))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("trained", [True, False])
def test_an_expert_that_was_not_trained_on_is_its_source(
    name: str, trained: bool, tmp_path: Path
) -> None:
    base = write(name, tmp_path / "base")
    sources = [lora(name, base, tmp_path / f"e{n}", n, trained, r=n + 2) for n in range(3)]
    folder = saved(mixture(name, base, sources, 2), tmp_path / "made")
    for source in sources:
        assert contents(folder / EXPERTS / source.name) == contents(source)


def test_files_and_names(tmp_path: Path) -> None:
    base = write("vit", tmp_path / "base")
    folder = saved(mixture("vit", base, [lora("vit", base, tmp_path / "a")]), tmp_path / "made")
    assert contents(folder).keys() == {
        CONFIG, ROUTER, f"{EXPERTS}/a/adapter_config.json", f"{EXPERTS}/a/{WEIGHTS}",
    }  # fmt: skip
    router = load_file(folder / ROUTER)
    said = json.loads((folder / CONFIG).read_text())
    assert router.keys() == {f"{module}.router.weight" for module in said["modules"]}
    assert {rows.dtype for rows in router.values()} == {torch.float32}
    assert router[f"{FIRST}.router.weight"].shape == (1, 32)


def test_weights_that_lie_in_pieces_are_put_together(tmp_path: Path) -> None:
    """`value` is asked for every parameter, as FSDP would need it."""
    base = write("vit", tmp_path / "base")
    made = mixture("vit", base, [lora("vit", base, tmp_path / "a")])
    whole = {id(w): w.detach().clone() for w in made.model.module.parameters()}
    plain = saved(made, tmp_path / "plain")
    with torch.no_grad():
        for layer in made.layers.values():
            for part in (layer.lora_A, layer.lora_B, layer.router):
                part.zero_()
    folder = tmp_path / "made"
    folder.mkdir()
    made.save(folder, lambda parameter: whole[id(parameter)])
    assert contents(folder) == contents(plain)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A mixture of two experts over a ViT, which lies beside."""
    base = write("vit", tmp_path / "base")
    experts = [lora("vit", base, tmp_path / name, n) for n, name in enumerate(("one", "two"))]
    return saved(mixture("vit", base, experts, 2), tmp_path / "made")


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)


ROWS = f"{FIRST}.router.weight"
A = f"base_model.model.{FIRST}.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(ROWS), f"no rows .2, 32. of numbers for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS][:1]}), f"no rows .2, 32. of numbers for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS].T}), f"no rows .2, 32. of numbers for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS] * np.nan}), f"of numbers for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS] * np.inf}), f"of numbers for {FIRST}"),
        (lambda t: t.update({"more.router.weight": t[ROWS]}), "do not name the same layers"),
        (lambda t: t.update({"more": t[ROWS]}), "do not name the same layers"),
    ],
    ids=["lacking", "rows", "turned", "nan", "infinite", "more", "strange"],
)
def test_routers_that_do_not_fit(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    changed(folder / ROUTER, change)
    with pytest.raises(CheckpointError, match=sentence):
        read("vit", tmp_path / "base", folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(A), "two lacks a part of its change to 1 tensor .*key.weight"),
        (lambda t: t.update({A: t[A][:, :5]}), "two does not fit the base in 1 tensor .*key"),
        (lambda t: t.update({A: t[A] * np.nan}), "two: .*k_proj.lora_A.weight is not all num"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": t[A]}), "two .*x"),
    ],
    ids=["lacking", "narrow", "nan", "more"],
)
def test_experts_that_do_not_fit(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    changed(folder / EXPERTS / "two" / WEIGHTS, change)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        read("vit", tmp_path / "base", folder)
    assert "two" in str(refused.value.message)


def test_an_expert_that_lacks_layers_of_the_other(folder: Path, tmp_path: Path) -> None:
    def lose(tensors: dict[str, Any]) -> None:
        for part in "AB":
            del tensors[f"base_model.model.{FIRST}.lora_{part}.weight"]

    changed(folder / EXPERTS / "two" / WEIGHTS, lose)
    with pytest.raises(CheckpointError, match="two has no part for") as refused:
        read("vit", tmp_path / "base", folder)
    assert "another expert has" in refused.value.message


def test_a_configuration_that_names_other_layers(folder: Path, tmp_path: Path) -> None:
    change_json(folder / CONFIG, "modules", value=["layers.0.attention.k_proj"])
    with pytest.raises(CheckpointError, match="do not name the same layers"):
        read("vit", tmp_path / "base", folder)


def test_a_mixture_on_another_base(folder: Path, tmp_path: Path) -> None:
    other = write("bert", tmp_path / "other")
    with pytest.raises(CheckpointError):
        read("bert", other, folder)


@pytest.mark.parametrize("which", [ROUTER, CONFIG, f"{EXPERTS}/two", f"{EXPERTS}/two/{WEIGHTS}"])
def test_links_are_not_followed(folder: Path, tmp_path: Path, which: str) -> None:
    target = tmp_path / "elsewhere"
    shutil.move(folder / which, target)
    (folder / which).symlink_to(target)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
