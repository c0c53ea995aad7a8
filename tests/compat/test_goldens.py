"""Our merges compared with outputs of the official TIES code and mergekit 0.1.5 in ../goldens.

goldens.json has the parameters of each case; inputs.safetensors the base and three experts, keyed
`model|tensor`; goldens.safetensors the results, keyed `case|tensor`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hubmerge.merging.deltas import Deltas
from hubmerge.merging.engine import merge
from hubmerge.merging.params import TiesParams
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.merging.ties import survey_ties, trim
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = json.loads((GOLDENS / "goldens.json").read_text())
INPUTS = load_file(GOLDENS / "inputs.safetensors")
RESULTS = load_file(GOLDENS / "goldens.safetensors")
NAMES = [key.removeprefix("base|") for key in INPUTS if key.startswith("base|")]
EXPERTS = ("e0", "e1", "e2")


def merged(
    folder: Path,
    name: str,
    weights: Any = 1.0,
    experts: Sequence[str] = EXPERTS,
    **params: object,
) -> Checkpoint:
    for model in ("base", *experts):
        (folder / model).mkdir()
        tensors = {tensor: INPUTS[f"{model}|{tensor}"] for tensor in NAMES}
        save_file(tensors, folder / model / "model.safetensors")
    each = weights if isinstance(weights, list) else [weights] * len(experts)
    opened = tuple(
        # The SHAs keep e0, e1, e2 in order: float32 sums are compared bit for bit.
        Expert(open_checkpoint(folder / model), sha=f"{i:040d}", weight=weight)
        for i, (model, weight) in enumerate(zip(experts, each, strict=True))
    )
    chosen = method(name)
    plan = MergePlan(open_checkpoint(folder / "base"), opened, chosen, parse_params(chosen, params))
    return merge(plan, folder / "out")


OFFICIAL = [case for case in CASES if case.startswith("official/") and "dis-mean" in case]


def test_all_official_cases_are_present() -> None:
    assert {(CASES[case]["K"], CASES[case]["lam"]) for case in OFFICIAL} == {
        (0.2, 1.0),
        (0.2, 0.7),
        (0.5, 1.0),
        (0.5, 0.7),
    }


@pytest.mark.parametrize("case", OFFICIAL)
def test_official_ties_bit_for_bit(case: str, tmp_path: Path) -> None:
    case_params = CASES[case]
    merge_result = merged(tmp_path, "ties", density=case_params["K"], scale=case_params["lam"])
    for name in NAMES:
        assert merge_result.read(name).tobytes() == RESULTS[f"{case}|{name}"].tobytes(), name


@pytest.mark.parametrize("case", OFFICIAL)
def test_official_ties_keeps_the_same_number(case: str) -> None:
    case_params = CASES[case]
    vectors = [
        Deltas(
            name,
            [INPUTS[f"{e}|{name}"] - INPUTS[f"base|{name}"] for e in EXPERTS],
            (1.0,) * 3,
            EXPERTS,
        )
        for name in NAMES
    ]
    params = TiesParams(density=case_params["K"])
    survey = survey_ties(lambda: vectors, params)
    kept = np.zeros(len(EXPERTS), int)
    for deltas in vectors:
        kept += [np.count_nonzero(delta) for delta in trim(deltas.values, survey.thresholds or ())]
    assert kept.tolist() == case_params["kept"]


# mergekit's methods: ours of the same formula, and parameters that mergekit fixes or defaults.
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "linear": ("average", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "ties": ("ties_mergekit", {}),
    "dare_linear": ("dare", {"rescale": "l1"}),
    "dare_ties": ("dare_ties", {"rescale": "l1"}),
    "breadcrumbs": ("breadcrumbs", {}),
    "breadcrumbs_ties": ("breadcrumbs_ties", {}),
    "slerp": ("slerp", {}),
    "nuslerp": ("nuslerp", {}),
    "multislerp": ("multislerp", {}),
    "model_stock": ("model_stock", {}),
    "sce": ("sce", {}),
    "karcher": ("karcher", {}),
}
NAMES_OF_PARAMS = {"lambda": "scale", "select_topk": "density"}
# Not a merge of changes: `linear` whose weights do not add up to 1; task_arithmetic with normalize
# is our average. The others are not offered.
LEFT_OUT = {"linear-w-nonorm", "ta-w-norm", "arcee_fusion", "nearswap", "ram", "ramplus_tl"}
MERGEKIT = [case.removeprefix("mergekit/") for case in CASES if case.startswith("mergekit/")]


def our_params(case: str) -> tuple[str, dict[str, object]]:
    """Our method, and parameters for those of a mergekit case."""
    name, fixed = METHODS[CASES[f"mergekit/{case}"]["method"]]
    params = dict(fixed)
    for key, value in CASES[f"mergekit/{case}"]["parameters"].items():
        if key == "rescale":
            params["rescale"] = "l1" if value else "none"
        elif key == "nuslerp_flatten":
            params["per"] = "tensor" if value else "row"
        elif key == "filter_wise":
            params["per"] = "row" if value else "tensor"
        elif key not in ("weight", *(("normalize",) if name == "average" else ())):
            params[NAMES_OF_PARAMS.get(key, key)] = value
    if name in ("nuslerp", "multislerp") and CASES[f"mergekit/{case}"]["base"]:
        params["space"] = "changes"
    return name, params


@pytest.mark.parametrize("case", [case for case in MERGEKIT if case not in LEFT_OUT])
def test_mergekit(case: str, tmp_path: Path) -> None:
    experts = [name for name in CASES[f"mergekit/{case}"]["inputs"] if name != "base"]
    name, params = our_params(case)
    weights = CASES[f"mergekit/{case}"]["parameters"].get("weight", 1.0)
    result = merged(tmp_path, name, weights, experts=experts, **params)
    for tensor in NAMES:
        expected = RESULTS[f"mergekit/{case}|{tensor}"]
        np.testing.assert_allclose(result.read(tensor), expected, rtol=0, atol=1e-6)


def test_mergekit_weighted_ties_equals_our_weighted_sign(tmp_path: Path) -> None:
    """With density 1, the two differ only in how weights are used."""
    from_mergekit = merged(tmp_path, "ties", [0.5, 0.3, 0.2], density=1, sign="weighted")
    for name in NAMES:
        deltas = [INPUTS[f"{e}|{name}"] - INPUTS[f"base|{name}"] for e in EXPERTS]
        weighted = np.stack([w * d for w, d in zip((0.5, 0.3, 0.2), deltas, strict=True)])
        sign = np.where(weighted.sum(0) >= 0, 1, -1)
        agree = np.sign(weighted) == sign
        weights = np.float32([0.5, 0.3, 0.2]).reshape(3, *(1,) * deltas[0].ndim) * agree
        total = weights.sum(0)
        expected = INPUTS[f"base|{name}"] + (weighted * agree).sum(0) / np.where(
            total == 0, 1, total
        )
        np.testing.assert_allclose(from_mergekit.read(name), expected, rtol=0, atol=1e-6)


def test_golden_files_are_unchanged() -> None:
    """Goldens are evidence: a change of one must be entered here."""
    digests = {
        name: hashlib.sha256((GOLDENS / name).read_bytes()).hexdigest()[:16]
        for name in ("goldens.json", "goldens.safetensors", "inputs.safetensors")
    }
    assert digests == {
        "goldens.json": "df9c46980db7463b",
        "goldens.safetensors": "7f45e4095f52c56d",
        "inputs.safetensors": "8baebdc87c519582",
    }
