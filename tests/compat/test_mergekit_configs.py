"""Configurations of mergekit as they are published, run with tiny models of the same tensors.

The shapes are those of mergekit's examples and of model cards; every one is merged and compared
with a reference in numpy, and with what mergekit 0.1.5 itself wrote: `mergekit_configs.safetensors`
has one vector for each configuration, all tensors in the order of their names, in float32. Methods
that draw random numbers are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from hubmerge.flows.merge import MergeRequest, MergeResult, merge_and_publish, prepare_merge
from hubmerge.hub.client import Hub
from hubmerge.mergekit.config import read_mergekit_config
from hubmerge.mergekit.translation import translate_config
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.dtypes import Array
from tests.compat.mergekit_models import ADAPTERS, MODELS, adapter, tensors, write_models
from tests.compat.mergekit_reference import reference

CONFIGS = sorted((Path(__file__).parent / "mergekit_configs").glob("*.yml"))
GOLDENS = load_file(Path(__file__).parents[1] / "goldens" / "mergekit_configs.safetensors")
RANDOM = {"dare-ties", "della", "della-linear"}
# Nearly opposite changes of a row: mergekit's float32 has few digits left.
ILL_CONDITIONED = {"model-stock-rows": 2e-5}
Run = Callable[[Path], MergeResult]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.fixture
def run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a configuration in the folder of the models; no Hub is needed."""
    monkeypatch.chdir(models)
    hub = Hub("http://127.0.0.1:9", "", tmp_path / "cache", "no Hub", deadline_s=1.0)

    def run_config(path: Path) -> MergeResult:
        merge = translate_config(read_mergekit_config(path))
        request = MergeRequest(config=merge, out=tmp_path / "out" / path.stem)
        return merge_and_publish(hub, prepare_merge(hub, request, tmp_path), lambda *_: None)

    return run_config


def all_models() -> dict[str, dict[str, Array]]:
    """The models by the names that configurations use; an adapter is added to its base."""
    found = {f"./{name}": tensors(name) for name in MODELS}
    for name in ADAPTERS:
        parts, settings = adapter(name)
        changed = dict(tensors("base"))
        for module in {key.rsplit(".", 2)[0] for key in parts}:
            product = parts[f"{module}.lora_B.weight"] @ parts[f"{module}.lora_A.weight"]
            scale = float(str(settings["lora_alpha"])) / float(str(settings["r"]))
            changed[f"{module}.weight"] = changed[f"{module}.weight"] + scale * product
        found[f"./base+./{name}"] = changed
    return found


def plain_config(path: Path) -> dict[str, object]:
    """The configuration with models named by text, also where mergekit wrote mappings."""

    def plain(value: object, key: str = "") -> object:
        if key in ("model", "base_model") and isinstance(value, dict):
            lora = value.get("lora")
            return value["model"]["path"] + (f"+{lora['path']}" if lora else "")
        if isinstance(value, dict):
            return {name: plain(inner, name) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    config = plain(yaml.safe_load(path.read_text()))
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_published_configuration_merges_as_mergekit_does(path: Path, run: Run) -> None:
    merged = run(path)
    result = open_checkpoint(merged.folder)
    shas = {f"{source.label}": source.content_key for source in merged.manifest.experts}
    expected = reference(plain_config(path), all_models(), shas)
    assert result.index.keys() == expected.keys()
    for name, values in expected.items():
        found = result.read(name)
        rounding = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8}[result.index[name].dtype]
        np.testing.assert_allclose(
            found.astype(np.float64), values, rtol=rounding, atol=2e-6, err_msg=name
        )
    config = json.loads((merged.folder / "config.json").read_text())
    layers = {int(name.split(".")[2]) for name in expected if ".layers." in name}
    assert config["num_hidden_layers"] == len(layers)
    assert (merged.folder / "mergekit_config.yml").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem not in RANDOM], ids=lambda p: p.stem)
def test_mergekit_itself_has_the_same_result(path: Path, run: Run) -> None:
    result = open_checkpoint(run(path).folder)
    values = [result.read(name).astype(np.float32).reshape(-1) for name in sorted(result.index)]
    tolerance = ILL_CONDITIONED.get(path.stem, 1e-6)
    np.testing.assert_allclose(np.concatenate(values), GOLDENS[path.stem], rtol=0, atol=tolerance)


def test_the_goldens_are_of_these_configurations() -> None:
    assert {path.stem for path in CONFIGS} == GOLDENS.keys() | RANDOM


def test_what_is_expanded_with_layers_that_do_nothing_answers_as_before(run: Run) -> None:
    """transformers loads it, with the new number of layers."""
    import torch
    import transformers

    path = next(path for path in CONFIGS if path.stem == "block-expansion")
    merged = run(path)

    def logits(folder: str) -> object:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        with torch.no_grad():
            return model(torch.arange(12)[None]).logits

    assert torch.equal(logits(str(merged.folder)), logits("./base"))
