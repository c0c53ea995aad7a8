"""Parameters that differ between tensors, experts and layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import UsageError
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import MergePlan, check_plan
from hubmerge.merging.registry import method
from hubmerge.merging.settings import (
    for_tensors,
    format_settings,
    parse_settings,
    record_own,
    record_params,
    restore_settings,
)
from hubmerge.merging.tensor_params import interpolate
from hubmerge.weights.dtypes import Array
from tests.merging.builders import write_models

NAMES = [
    "embed.weight", "layers.0.mlp.weight", "layers.0.attn.weight", "layers.1.mlp.weight",
    "layers.2.attn.weight", "norm.weight",
]  # fmt: skip


def models() -> list[dict[str, Array]]:
    """Experts that change every entry by 1 and by 10."""
    return [{name: np.full((2, 3), value, np.float32) for name in NAMES} for value in (0, 1, 10)]


def merged(folder: Path, name: str, settings: Mapping[str, str]) -> dict[str, float]:
    """The first entry of every tensor of a merge."""
    result = merge(make_plan(folder, name, settings), folder / "out", threads=2)
    return {tensor: float(result.read(tensor)[0, 0]) for tensor in NAMES}


def make_plan(folder: Path, name: str, settings: Mapping[str, str]) -> MergePlan:
    plan = write_models(folder, *models())(name)
    params, parsed = parse_settings(method(name), settings, len(plan.experts))
    return replace(plan, params=params, settings=for_tensors(parsed, plan.base.index))


def test_a_filter_is_for_tensors_with_its_text_in_their_names(tmp_path: Path) -> None:
    found = merged(tmp_path, "task_arithmetic", {"scale": "0.1", "scale[mlp]": "1"})
    assert found == pytest.approx({name: 11 if "mlp" in name else 1.1 for name in NAMES})


def test_a_list_is_spread_over_the_layers(tmp_path: Path) -> None:
    found = merged(tmp_path, "task_arithmetic", {"scale": "[0, 1, 4]"})
    expected = [0, 0, 0, 11, 44, 44]
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)))


def test_a_filter_may_name_layers(tmp_path: Path) -> None:
    """They count before others; a list is spread over the layers of the filter."""
    settings = {
        "scale": "0", "scale[mlp]": "3", "scale[@1:3]": "[1,2]", "scale[attn@0:1]": "[5,4]",
        "scale[@before]": "6", "scale[@after]": "7",
    }  # fmt: skip
    found = merged(tmp_path, "task_arithmetic", settings)
    expected = [66, 33, 44, 11, 22, 77]
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)))


def test_weights_may_be_zero_for_some_tensors_but_not_all_of_them(tmp_path: Path) -> None:
    found = merged(tmp_path, "average", {"weight[mlp]": "1,0", "weight[attn]": "0,1"})
    expected = [5.5, 1, 10, 1, 10, 5.5]
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)))
    plan = make_plan(tmp_path / "none", "average", {"weight[mlp]": "0,0"})
    with pytest.raises(UsageError, match=r"of layers\.0\.mlp\.weight are not valid"):
        check_plan(plan)


def test_each_expert_has_its_own_weights(tmp_path: Path) -> None:
    """The configuration on the front page of mergekit, in our words."""
    settings = {"weight": "1,[0,1,2]", "weight[mlp]": "1,0.5"}
    found = merged(tmp_path, "task_arithmetic", settings)
    expected = [1, 6, 1, 6, 21, 21]
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)))


def test_each_expert_has_its_own_density(tmp_path: Path) -> None:
    """Dropped or kept: the second expert keeps everything."""
    found = merged(tmp_path, "dare", {"density": "0.999999,1", "density[norm]": "1"})
    assert found == pytest.approx(dict.fromkeys(NAMES, 11), rel=1e-5)


def test_the_order_of_experts_does_not_matter(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "task_arithmetic", {"scale[mlp]": "2", "weight[attn]": "1,-3"})
    turned = replace(plan, experts=plan.experts[::-1], settings=plan.settings.reordered((1, 0)))
    expected = merge(plan, tmp_path / "out").digest()
    assert merge(turned, tmp_path / "turned").digest() == expected


@pytest.mark.parametrize(("name", "settings", "problem"), [
    ("ties", {"density[mlp]": "0.3"}, "density[mlp]: density must be the same for all tensors"),
    ("ties", {"weight[mlp]": "-1"}, "weight[mlp]=-1: every weight must be positive"),
    ("dare", {"density[mlp]": "2"}, "must be at most 1"),
    ("dare", {"densty[mlp]": "0.2"}, "densty"),
    ("dare", {"rescale": "[1,2]"}, "rescale"),
    ("dare_ties", {"rescale[mlp]": "l1"}, "rescale must be the same for all tensors"),
    ("nuslerp", {"per": "row,tensor"}, "per must be the same for all tensors"),
    ("dare", {"density[mlp@2:2]": "0.5"}, "'mlp@2:2' is not a filter"),
    ("dare", {"density[@middle]": "0.5"}, "'@middle' is not a filter"),
    ("dare", {"density": "0.1,0.2,0.3"}, "gives 3 values for 2 experts"),
    ("dare", {"density[mlp": "0.1"}, "is not name or name[text]"),
    ("dare", {"scale": "1,5"}, "scale: scale must be the same for all experts"),
    ("dare", {"density": "[0.1"}, "is not a value"),
    ("dare", {"density": "[a]"}, "is not a list of numbers"),
    ("dare", {"density": "[]"}, "no numbers"),
])  # fmt: skip
def test_what_is_wrong_is_reported(name: str, settings: Mapping[str, str], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(method(name), settings, 2)
    assert problem in caught.value.message


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(method("dare"), {"density[a]": "2", "scale[b]": "x"}, 2)
    assert "density" in caught.value.message
    assert "scale" in caught.value.message


def test_a_filter_without_tensors_is_an_error(tmp_path: Path) -> None:
    settings = {
        "density[self_atn]": "0.3", "density[mlp@1:9]": "0.3", "density[mlp@8:9]": "0.3",
        "density[mlp@after]": "0.3", "density[@7:9]": "0.3",
    }  # fmt: skip
    with pytest.raises(UsageError) as caught:
        check_plan(make_plan(tmp_path, "dare", settings))
    assert caught.value.problems == (
        "density[mlp@8:9]: no tensor of layers 8 to 8 has 'mlp' in its name.",
        "density[mlp@after]: no tensor after the layers has 'mlp' in its name.",
        "density[@7:9]: no tensor of layers 7 to 8 exists.",
        "density[self_atn]: no tensor has 'self_atn' in its name.",
    )


@pytest.mark.parametrize("settings", [
    {"density": "0.3"}, {"density[mlp]": "0.3", "scale": "[1,0.5]"},
    {"density": "0.3,0.4", "weight[mlp]": "1,[0,2]"}, {"density": ",0.4"},
    {"density[mlp@0:2]": "0.3", "weight[@1:2]": "1,[0,2]"},
])  # fmt: skip
def test_a_manifest_restores_them(settings: Mapping[str, str]) -> None:
    chosen = method("dare")
    params, parsed = parse_settings(chosen, settings, 2)
    recorded = record_params(params, parsed)
    own = [record_own(mine) for mine in parsed.own] or [{}, {}]
    assert restore_settings(chosen, recorded, own) == (params, parsed)
    typed = format_settings(recorded, own if any(own) else [])
    assert parse_settings(chosen, typed, 2) == (params, parsed)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(0, 1))
def test_interpolation_is_that_of_numpy(values: list[float], depth: float) -> None:
    expected: Any = np.interp(depth * (len(values) - 1), range(len(values)), values)
    assert interpolate(values, depth) == pytest.approx(expected, abs=1e-9)
