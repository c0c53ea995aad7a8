"""Our merges compared with outputs of the official TIES code and mergekit 0.1.5 in ../goldens.

goldens.json has the parameters of each case; inputs.safetensors the base and three experts, keyed
`model|tensor`; goldens.safetensors the results, keyed `case|tensor`.
"""

from __future__ import annotations

import hashlib
import json
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


def merged(folder: Path, name: str, weights: Any = 1.0, **params: object) -> Checkpoint:
    for model in ("base", *EXPERTS):
        (folder / model).mkdir()
        tensors = {tensor: INPUTS[f"{model}|{tensor}"] for tensor in NAMES}
        save_file(tensors, folder / model / "model.safetensors")
    each = weights if isinstance(weights, list) else [weights] * len(EXPERTS)
    experts = tuple(
        # The SHAs keep e0, e1, e2 in order: float32 sums are compared bit for bit.
        Expert(open_checkpoint(folder / model), sha=f"{i:040d}", weight=weight)
        for i, (model, weight) in enumerate(zip(EXPERTS, each, strict=True))
    )
    chosen = method(name)
    plan = MergePlan(
        open_checkpoint(folder / "base"), experts, chosen, parse_params(chosen, params)
    )
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


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("linear-w", "average"),
        ("linear-w-norm", "average"),
        ("ta-1", "task_arithmetic"),
        ("ta-w", "task_arithmetic"),
        ("dare_linear-d1", "dare"),
        ("ties-d1", "ties"),
    ],
)
def test_mergekit(case: str, name: str, tmp_path: Path) -> None:
    case_params = CASES[f"mergekit/{case}"]["parameters"]
    params = {"scale": case_params["lambda"]} if "lambda" in case_params else {}
    params |= {"density": case_params["density"]} if "density" in case_params else {}
    merge_result = merged(tmp_path, name, case_params["weight"], **params)
    for tensor in NAMES:
        expected = RESULTS[f"mergekit/{case}|{tensor}"]
        np.testing.assert_allclose(merge_result.read(tensor), expected, rtol=0, atol=1e-6)


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
