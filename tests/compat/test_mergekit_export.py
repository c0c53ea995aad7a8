"""A merge as a configuration of mergekit: read again, it gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hubmerge.errors import HubmergeError, UsageError
from hubmerge.flows.merge import MergeRequest, MergeResult, merge_and_publish, prepare_merge
from hubmerge.hub.client import Hub
from hubmerge.mergekit.config import read_mergekit_config
from hubmerge.mergekit.translation import translate_config
from hubmerge.refs import parse_ref
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.match_options import MatchOptions
from tests.compat.mergekit_models import write_models

Merge = Callable[[MergeRequest, str], MergeResult]


@pytest.fixture
def merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """Merge in the folder of the models; no Hub is needed."""
    write_models(tmp_path / "models")
    monkeypatch.chdir(tmp_path / "models")
    hub = Hub("http://127.0.0.1:9", "", tmp_path / "cache", "no Hub", deadline_s=1.0)

    def run(request: MergeRequest, out: str) -> MergeResult:
        request = replace(request, out=tmp_path / out)
        return merge_and_publish(hub, prepare_merge(hub, request, tmp_path), lambda *_: None)

    return run


def request_of(
    method: str, settings: Mapping[str, str], names: tuple[str, ...], **options: Any
) -> MergeRequest:
    experts = tuple(parse_ref(f"./{name}") for name in names)
    return MergeRequest(experts, method, settings, parse_ref("./base"), **options)


THREE = ("alpha", "beta", "gamma")


@pytest.mark.parametrize(("method", "settings", "names"), [
    ("task_arithmetic", {"scale": "0.7", "weight": "1,0.5,-0.3"}, THREE),
    ("task_arithmetic", {"scale[mlp]": "[1,0.5]", "scale[q_proj]": "2"}, THREE),
    ("ties_mergekit", {"density": "0.3"}, THREE),
    ("ties_mergekit", {"density": "[0.9,0.1],0.5,", "weight[mlp]": "1,[0,2],0.1",
                       "weight[self_attn]": "0.3", "weight": "1,2,3"}, THREE),
    ("ties_mergekit", {"normalize[norm]": "false", "rescale": "l1"}, THREE),
    ("dare", {"rescale": "l1", "density": "0.4"}, THREE),
    ("dare_ties", {"rescale": "none", "density[mlp]": "0.4,0.6,1"}, THREE),
    ("della", {"rescale": "l1", "density": "0.5", "epsilon": "0.2", "normalize": "false"}, THREE),
    ("della_linear", {"rescale": "l1", "density": "0.5"}, THREE),
    ("breadcrumbs", {"gamma": "0.1", "density": "0.8"}, THREE),
    ("breadcrumbs_ties", {"gamma": "0.1,0.2,0.05"}, THREE),
    ("sce", {"density": "0.5"}, THREE),
    ("slerp", {"t": "[0,0.5,0.3,0.7,1]", "t[mlp]": "0.2"}, ("alpha",)),
    ("nuslerp", {"space": "changes", "weight": "1,3", "per": "row"}, ("alpha", "beta")),
    ("multislerp", {"space": "changes", "weight": "1,3,2"}, THREE),
    ("model_stock", {"per": "row"}, THREE),
    ("task_arithmetic", {}, ("adapter-one", "alpha", "adapter-two")),
])  # fmt: skip
def test_it_gives_the_same_bytes_when_it_is_read_again(
    method: str, settings: dict[str, str], names: tuple[str, ...], merge: Merge, tmp_path: Path
) -> None:
    export = tmp_path / "config.yml"
    merged = merge(request_of(method, settings, names, export=export), "one")
    config = translate_config(read_mergekit_config(export))
    again = merge(MergeRequest(config=config), "two")
    assert open_checkpoint(again.folder).digest() == open_checkpoint(merged.folder).digest()


@pytest.mark.parametrize(("method", "settings", "names"), [
    ("average", {"weight": "1,2,0.5", "weight[mlp]": "1,0,1"}, THREE),
    ("nuslerp", {"weight": "1,3"}, ("alpha", "beta")),
    ("multislerp", {"weight": "1,3,2"}, THREE),
    ("karcher", {"iterations": "20"}, THREE),
    ("passthrough", {"factor[o_proj]": "[0,2]"}, ("alpha",)),
    ("average", {}, ("adapter-one", "adapter-two")),
])  # fmt: skip
def test_without_a_base_in_mergekit_it_is_the_same_up_to_rounding(
    method: str, settings: dict[str, str], names: tuple[str, ...], merge: Merge, tmp_path: Path
) -> None:
    """The difference is taken to the first expert."""
    export = tmp_path / "config.yml"
    first = open_checkpoint(merge(request_of(method, settings, names, export=export), "one").folder)
    config = translate_config(read_mergekit_config(export))
    second = open_checkpoint(merge(MergeRequest(config=config), "two").folder)
    for name in first.names():
        np.testing.assert_allclose(second.read(name), first.read(name), rtol=0, atol=2e-6)


def test_a_configuration(merge: Merge, tmp_path: Path) -> None:
    """It computes in float32, and names tensors after the layers, where mergekit has no last."""
    settings = {"weight": "0.5,[0,1]", "density[mlp]": "0.3"}
    request = request_of("ties_mergekit", settings, ("alpha", "beta"), dtype="BF16")
    merge(replace(request, export=tmp_path / "config.yml"), "out")
    assert yaml.safe_load((tmp_path / "config.yml").read_text()) == {
        "merge_method": "ties",
        "base_model": "./base",
        "models": [
            {"model": "./alpha", "parameters": {"weight": 0.5}},
            {
                "model": "./beta",
                "parameters": {
                    "weight": [
                        {"filter": "lm_head.weight", "value": 1.0},
                        {"filter": "model.norm.weight", "value": 1.0},
                        {"value": [0.0, 1.0]},
                    ]
                },
            },
        ],
        "parameters": {
            "density": [{"filter": "mlp", "value": 0.3}, {"value": 0.2}],
            "normalize": True,
            "rescale": False,
            "lambda": 1.0,
        },
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    with pytest.raises(UsageError, match="exists"):
        merge(replace(request, export=tmp_path / "config.yml"), "other")


@pytest.mark.parametrize(("method", "settings", "options", "problem"), [
    ("ties", {}, {}, "ties is that of its authors; ties_mergekit is mergekit's"),
    ("tsv", {}, {}, "mergekit has no tsv"),
    ("dare", {}, {}, "mergekit does not divide by the density: set rescale=l1 or rescale=none"),
    ("dare", {"rescale": "l1", "seed": "3"}, {}, "mergekit's configurations have no seed"),
    ("average", {"keep": "0.5"}, {}, "mergekit does not have keep"),
    ("average", {"weight[@0:2]": "1,2,3"}, {}, "weight[@0:2]: a filter of mergekit has no layers"),
    ("karcher", {"weight": "1,2,3"}, {}, "mergekit's karcher has no weights"),
    ("average", {}, {"heads": "drop"}, "mergekit does not have --heads"),
])  # fmt: skip
def test_what_mergekit_cannot_do_is_refused(
    method: str,
    settings: dict[str, str],
    options: dict[str, Any],
    problem: str,
    merge: Merge,
    tmp_path: Path,
) -> None:
    chosen = MatchOptions(**options)
    request = request_of(method, settings, THREE, options=chosen, export=tmp_path / "x.yml")
    with pytest.raises(HubmergeError) as caught:
        merge(request, "out")
    assert problem in caught.value.message
    assert not (tmp_path / "x.yml").exists()
    assert not (tmp_path / "out").exists()


def test_names_that_mergekit_would_split_are_refused(merge: Merge, tmp_path: Path) -> None:
    Path("alpha").rename("al+pha")
    request = request_of("average", {}, ("al+pha", "beta"), export=tmp_path / "x.yml")
    with pytest.raises(UsageError, match=r"mergekit cannot name \./al\+pha"):
        merge(request, "out")
