"""PEFT's Arrow with our trained router in it, against equation 2 by hand and our own mixture."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from safetensors.torch import load_file, save_file

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.moerging.export import export_peft_arrow
from hubmerge.moerging.moe_model import Mixture
from hubmerge.moerging.peft_arrow import to_peft
from tests.moerging.small_mixtures import (
    EXPERTS,
    FAMILIES,
    TEXT,
    by_hand,
    close,
    mixture,
    natural,
    said,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),  # peft's own, of Conv1D
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for name, family in FAMILIES.items():
        family.make(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="module")
def mixtures(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Mixture]:
    root = tmp_path_factory.mktemp("mixtures")
    return {name: mixture(name, bases[name], root / name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_says_what_the_equation_says(
    bases: dict[str, Path], mixtures: dict[str, Mixture], name: str
) -> None:
    expected = by_hand(name, bases[name], mixtures[name])
    assert (said(name, natural(name, bases[name])) - expected).abs().max() > 1
    model = to_peft(natural(name, bases[name]), mixtures[name])
    assert close(said(name, model.get_base_model()), expected)
    assert close(said(name, mixtures[name].model.module), expected)


def test_a_scale_may_differ_from_layer_to_layer(bases: dict[str, Path], tmp_path: Path) -> None:
    made = mixture("vit", bases["vit"], tmp_path)
    same = said("vit", made.model.module)
    for number, layer in enumerate(made.layers.values()):
        layer.scale *= 1 + number / 7
    expected = by_hand("vit", bases["vit"], made)
    assert not close(same, expected)
    model = to_peft(natural("vit", bases["vit"]), made)
    assert close(said("vit", model.get_base_model()), expected)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_an_export_is_run_by_its_own_readme(
    mixtures: dict[str, Mixture], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    export_peft_arrow(mixtures[name], out)
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    ending = """
from safetensors.torch import save_file
told = model(**load_file("../inputs.safetensors"))[0]
save_file({"told": told.detach()}, "../outputs.safetensors")
"""
    save_file(TEXT, tmp_path / "inputs.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", "".join(blocks) + ending], cwd=out, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = mixtures[name].model.module(**TEXT)[0]
    assert close(load_file(tmp_path / "outputs.safetensors")["told"], expected)


def test_an_exported_expert_opens_alone(
    bases: dict[str, Path], mixtures: dict[str, Mixture], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export_peft_arrow(mixtures["vit"], out)
    heard = set()
    for place, (name, (_, scale)) in enumerate(EXPERTS.items()):
        folder = out / "experts" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] == 3  # the largest of 2, 3 and 2
        assert config["lora_alpha"] / config["r"] == scale
        alone = PeftModel.from_pretrained(natural("vit", bases["vit"]), str(folder))
        merged = natural("vit", bases["vit"])
        for path, layer in mixtures["vit"].layers.items():
            product = layer.lora_B[place] @ layer.lora_A[place]
            merged.get_submodule(path).weight.data += scale * product
        assert close(said("vit", alone), said("vit", merged))
        heard.add(said("vit", alone).sum().item())
    assert len(heard) == len(EXPERTS)


def test_where_pefts_own_way_works_it_is_ours(
    bases: dict[str, Path], mixtures: dict[str, Mixture], tmp_path: Path
) -> None:
    made, out = mixtures["t5"], tmp_path / "out"
    export_peft_arrow(made, out)
    folders = [str(out / "experts" / name) for name in EXPERTS]
    arrow = ArrowConfig(top_k=2, router_temperature=0.5)
    model = create_arrow_model(natural("t5", bases["t5"]), folders, arrow)
    expected = said("t5", made.model.module)
    assert not close(said("t5", model.get_base_model()), expected)  # its own prototypes
    for path, layer in made.layers.items():
        router = model.get_submodule(f"base_model.model.{path}").lora_arrow["arrow_router"]
        router.prototypes = layer.router.detach()
    assert close(said("t5", model.get_base_model()), expected)


def test_pefts_own_way_takes_layers_that_have_no_experts(
    bases: dict[str, Path], mixtures: dict[str, Mixture], tmp_path: Path
) -> None:
    """Why load_mixture does not call create_arrow_model: it targets a BERT's pooler too."""
    export_peft_arrow(mixtures["bert"], tmp_path / "out")
    folders = [str(tmp_path / "out" / "experts" / name) for name in EXPERTS]
    model = create_arrow_model(natural("bert", bases["bert"]), folders, ArrowConfig(top_k=2))
    with pytest.raises(RuntimeError, match="non-empty"):
        said("bert", model.get_base_model())


def test_what_peft_cannot_compute_is_refused(
    bases: dict[str, Path], mixtures: dict[str, Mixture], tmp_path: Path
) -> None:
    made = mixtures["vit"]
    signed = dataclasses.replace(
        made.config, router=dataclasses.replace(made.config.router, signed=True)
    )
    fused = dataclasses.replace(made.config, layout="open_clip")
    for config, word in ((signed, "signed"), (fused, "open_clip's layout")):
        refused = dataclasses.replace(made, config=config)
        with pytest.raises(UsageError, match=word):
            to_peft(natural("vit", bases["vit"]), refused)
        with pytest.raises(UsageError, match=word):
            export_peft_arrow(refused, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match=r"BertModel lacks 12 of the 12 layers") as told:
        to_peft(natural("bert", bases["bert"]), made)
    assert told.value.hint == "Open the base as ViTModel."
