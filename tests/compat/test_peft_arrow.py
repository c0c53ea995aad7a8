"""PEFT's Arrow with our trained router, compared with equation 2 and with our own layers."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from safetensors.torch import load_file, save_file

from hubmerge.errors import UsageError
from hubmerge.moerging.export import export_peft_arrow
from hubmerge.moerging.moe_model import MoeModel
from hubmerge.moerging.remote_code.peft_moe import load_peft_moe
from tests.moerging.small_moes import (
    EXPERTS,
    FAMILIES,
    TEXT,
    is_close,
    load_with_transformers,
    make_moe,
    predict,
    predict_by_equation_2,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),  # peft's own, of Conv1D
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for name, family in FAMILIES.items():
        family.write_base(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="module")
def moes(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, MoeModel]:
    root = tmp_path_factory.mktemp("moes")
    return {name: make_moe(name, bases[name], root / name) for name in FAMILIES}


def load_in_peft(name: str, base: Path, moe: MoeModel, folder: Path) -> PeftModel:
    """Export to a folder, and load the export into the base."""
    export_peft_arrow(moe, folder)
    return load_peft_moe(load_with_transformers(name, base), folder)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ("clip", "t5", "gpt2") else pytest.mark.slow)
    for name in FAMILIES
])  # fmt: skip
def test_peft_computes_equation_2(
    bases: dict[str, Path], moes: dict[str, MoeModel], tmp_path: Path, name: str
) -> None:
    expected = predict_by_equation_2(name, bases[name], moes[name])
    assert (predict(name, load_with_transformers(name, bases[name])) - expected).abs().max() > 1
    model = load_in_peft(name, bases[name], moes[name], tmp_path / "out")
    assert is_close(predict(name, model.get_base_model()), expected)
    assert is_close(predict(name, moes[name].model.module), expected)


def test_scales_may_differ_by_layer(bases: dict[str, Path], tmp_path: Path) -> None:
    moe = make_moe("vit", bases["vit"], tmp_path)
    same = predict("vit", moe.model.module)
    for number, layer in enumerate(moe.layers.values()):
        layer.scale *= 1 + number / 7
    expected = predict_by_equation_2("vit", bases["vit"], moe)
    assert not is_close(same, expected)
    model = load_in_peft("vit", bases["vit"], moe, tmp_path / "out")
    assert is_close(predict("vit", model.get_base_model()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_readme_runs_the_export(
    python: Path, moes: dict[str, MoeModel], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    export_peft_arrow(moes[name], out)
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    ending = """
from safetensors.torch import save_file
output = model(**load_file("../inputs.safetensors"))[0]
save_file({"output": output.detach()}, "../outputs.safetensors")
"""
    save_file(TEXT, tmp_path / "inputs.safetensors")
    done = subprocess.run(
        [python, "-c", "".join(blocks) + ending], cwd=out, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = moes[name].model.module(**TEXT)[0]
    assert is_close(load_file(tmp_path / "outputs.safetensors")["output"], expected)


def test_exported_expert_can_be_loaded_alone(
    bases: dict[str, Path], moes: dict[str, MoeModel], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export_peft_arrow(moes["vit"], out)
    sums = set()
    for index, (name, (_, scale)) in enumerate(EXPERTS.items()):
        folder = out / "experts" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] == 3  # the largest of 2, 3 and 2
        assert config["lora_alpha"] / config["r"] == scale
        alone = PeftModel.from_pretrained(load_with_transformers("vit", bases["vit"]), str(folder))
        merged = load_with_transformers("vit", bases["vit"])
        for path, layer in moes["vit"].layers.items():
            product = layer.lora_B[index] @ layer.lora_A[index]
            merged.get_submodule(path).weight.data += scale * product
        assert is_close(predict("vit", alone), predict("vit", merged))
        sums.add(predict("vit", alone).sum().item())
    assert len(sums) == len(EXPERTS)


def test_create_arrow_model_with_our_router_is_equal(
    bases: dict[str, Path], moes: dict[str, MoeModel], tmp_path: Path
) -> None:
    moe, out = moes["t5"], tmp_path / "out"
    export_peft_arrow(moe, out)
    folders = [str(out / "experts" / name) for name in EXPERTS]
    arrow = ArrowConfig(top_k=2, router_temperature=0.5)
    model = create_arrow_model(load_with_transformers("t5", bases["t5"]), folders, arrow)
    expected = predict("t5", moe.model.module)
    assert not is_close(predict("t5", model.get_base_model()), expected)  # its own prototypes
    for path, layer in moe.layers.items():
        router = model.get_submodule(f"base_model.model.{path}").lora_arrow["arrow_router"]
        router.prototypes = layer.router.detach()
    assert is_close(predict("t5", model.get_base_model()), expected)


def test_create_arrow_model_targets_layers_without_experts(
    bases: dict[str, Path], moes: dict[str, MoeModel], tmp_path: Path
) -> None:
    """Why load_peft_moe does not call create_arrow_model: it also targets a BERT's pooler."""
    export_peft_arrow(moes["bert"], tmp_path / "out")
    folders = [str(tmp_path / "out" / "experts" / name) for name in EXPERTS]
    model = create_arrow_model(
        load_with_transformers("bert", bases["bert"]), folders, ArrowConfig(top_k=2)
    )
    with pytest.raises(RuntimeError, match="non-empty"):
        predict("bert", model.get_base_model())


def test_moe_that_peft_cannot_compute_is_not_exported(
    moes: dict[str, MoeModel], tmp_path: Path
) -> None:
    moe = moes["vit"]
    signed = dataclasses.replace(
        moe.config, router=dataclasses.replace(moe.config.router, signed=True)
    )
    fused = dataclasses.replace(moe.config, layout="open_clip")
    for config, word in ((signed, "signed"), (fused, "open_clip's layout")):
        with pytest.raises(UsageError, match=word):
            export_peft_arrow(dataclasses.replace(moe, config=config), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
