"""The golden cases of mergekit 0.1.5, written as its configurations and run as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from hubmerge.errors import UsageError
from hubmerge.flows.merge import MergeRequest, merge_and_publish, prepare_merge
from hubmerge.hub.client import Hub
from hubmerge.mergekit.config import read_mergekit_config
from hubmerge.mergekit.translation import translate_config
from hubmerge.weights.checkpoint import open_checkpoint
from tests.compat.test_goldens import CASES, INPUTS, MERGEKIT, NAMES, RESULTS

REFUSED = {
    "linear-w-nonorm": "add up to 1.2",
    "arcee_fusion": "is not offered",
    "nearswap": "is not offered",
    "ram": "is not offered",
    "ramplus_tl": "is not offered",
}


def config_of(case: str) -> dict[str, Any]:
    """A case as a configuration: weights are parameters of the models, the others of all."""
    fields = CASES[f"mergekit/{case}"]
    parameters = dict(fields["parameters"])
    names = [name for name in fields["inputs"] if name != fields["base"]]
    weights = parameters.pop("weight", None)
    models: list[dict[str, Any]] = [{"model": f"./{name}"} for name in names]
    if isinstance(weights, list):
        for entry, weight in zip(models, weights, strict=True):
            entry["parameters"] = {"weight": weight}
    elif weights is not None:
        parameters["weight"] = weights
    base = {"base_model": f"./{fields['base']}"} if fields["base"] else {}
    return {
        "merge_method": fields["method"],
        **base,
        "models": models,
        "parameters": parameters,
        "dtype": "float32",
    }


def run(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for model in ("base", "e0", "e1", "e2"):
        (folder / model).mkdir()
        tensors = {name: INPUTS[f"{model}|{name}"] for name in NAMES}
        save_file(tensors, folder / model / "model.safetensors")
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config_of(case)))
    monkeypatch.chdir(folder)
    hub = Hub("http://127.0.0.1:9", "", folder / "cache", "no Hub", deadline_s=1.0)
    request = MergeRequest(config=translate_config(read_mergekit_config(path)), out=folder / "out")
    return merge_and_publish(hub, prepare_merge(hub, request, folder), lambda *_: None).folder


@pytest.mark.parametrize("case", [case for case in MERGEKIT if case not in REFUSED])
def test_a_golden_case(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = open_checkpoint(run(case, tmp_path, monkeypatch))
    for name in NAMES:
        expected = RESULTS[f"mergekit/{case}|{name}"]
        np.testing.assert_allclose(result.read(name), expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("case", "problem"), REFUSED.items())
def test_the_others_are_refused(
    case: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=problem):
        run(case, tmp_path, monkeypatch)
