"""--set weight, keep and intruders: they reach the plan, the manifest and the recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hubmerge.errors import UsageError
from hubmerge.flows.merge import merge_and_publish, prepare_merge
from hubmerge.flows.prepared_merge import MergeRequest, PreparedMerge
from hubmerge.hub.client import Hub
from hubmerge.manifest import MANIFEST_JSON, parse_manifest
from hubmerge.refs import parse_ref
from hubmerge.weights.checkpoint import open_checkpoint
from tests.weights.adapters import write_base

Prepare = Callable[..., PreparedMerge]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Prepare a merge of two local experts; no Hub is needed."""
    folders = [
        write_base(tmp_path / name, {"w": np.full((2, 2), value, np.float32)}).folder
        for value, name in enumerate(("base", "a", "b"))
    ]
    base, *experts = [parse_ref(str(folder)) for folder in folders]

    def prepare_average(**settings: str) -> PreparedMerge:
        request = MergeRequest(tuple(experts), "average", settings, base)
        unreachable = Hub(
            "http://127.0.0.1:9", lambda: None, tmp_path / "cache", "no Hub", deadline_s=1.0
        )
        return prepare_merge(unreachable, request, tmp_path / "merges")

    return prepare_average


def test_a_value_for_all_experts_or_for_each(prepare: Prepare) -> None:
    prepared = prepare(weight="1,0.5", keep="0.3", intruders="0,1")
    shares = [(1.0, 0.3, 0.0), (0.5, 0.3, 1.0)]
    for experts in (prepared.plan.experts, prepared.manifest.experts):
        assert [(expert.weight, expert.keep, expert.intruders) for expert in experts] == shares
    assert "--set intruders=0,1 --set keep=0.3 --set weight=1,0.5" in prepared.manifest.command


def test_default_values_do_not_change_the_recipe(prepare: Prepare) -> None:
    plain = prepare().manifest.recipe
    assert prepare(keep="1", intruders="1,1").manifest.recipe == plain
    changed = [prepare(**{name: "0.5"}).manifest.recipe for name in ("keep", "intruders")]
    assert len({plain, *changed}) == 3


def test_all_problems_are_reported_together(prepare: Prepare) -> None:
    with pytest.raises(UsageError) as error:
        prepare(weight="1,x", keep="0.1,0.2,1.5", intruders="-1")
    assert error.value.message.splitlines()[1:] == [
        "  - weight=1,x is not a list of numbers.",
        "  - keep=0.1,0.2,1.5 gives 3 numbers for 2 experts.",
        "  - keep=0.1,0.2,1.5 is not above 0 and at most 1.",
        "  - intruders=-1 is not from 0 to 1.",
    ]
    assert "one for each, in their order" in error.value.hint


@pytest.mark.parametrize(
    "settings", [{"keep": "0"}, {"keep": "nan"}, {"intruders": "1.01"}, {"weight": "inf"}]
)
def test_a_value_out_of_range_is_refused(settings: dict[str, str], prepare: Prepare) -> None:
    with pytest.raises(UsageError, match="is not "):
        prepare(**settings)


def test_parameters_of_some_tensors_reach_the_plan_the_manifest_and_the_bytes(
    prepare: Prepare, tmp_path: Path
) -> None:
    settings = {"weight[w]": "1,[0,3]"}
    prepared = prepare(**settings)
    assert prepared.manifest.recipe != prepare().manifest.recipe
    assert [source.settings for source in prepared.manifest.experts] == [
        {"weight[w]": 1.0},
        {"weight[w]": [0.0, 3.0]},
    ]
    assert "'weight[w]=1,[0,3]'" in prepared.manifest.command
    hub = Hub("http://127.0.0.1:9", lambda: None, tmp_path / "cache", "no Hub", deadline_s=1.0)
    merged = merge_and_publish(hub, prepared, lambda *_: None)
    tensor = open_checkpoint(merged.folder).read("w")
    assert tensor.tolist() == [[1.75] * 2] * 2  # "w" is not in a layer: (1 * 1 + 3 * 2) / 4
    again = merged.folder / MANIFEST_JSON
    assert parse_manifest(again.read_bytes(), "").experts == prepared.manifest.experts


def test_the_same_weights_get_the_same_masks(tmp_path: Path) -> None:
    """Whatever else is in their folders."""
    random = np.random.default_rng(0)
    tensors = [{"w": random.normal(size=(9, 9)).astype(np.float32)} for _ in range(2)]
    base = write_base(tmp_path / "base", tensors[0]).folder
    hub = Hub("http://127.0.0.1:9", lambda: None, tmp_path / "cache", "no Hub", deadline_s=1.0)
    merges = []
    for name in ("a", "b"):
        folder = write_base(tmp_path / name, tensors[1]).folder
        (folder / "config.json").write_text(f'{{"note": "{name}"}}')
        request = MergeRequest((parse_ref(str(folder)),), "dare", {}, parse_ref(str(base)))
        prepared = prepare_merge(hub, request, tmp_path / f"merges-{name}")
        merges.append(merge_and_publish(hub, prepared, lambda *_: None).folder)
    first, second = (open_checkpoint(folder).read("w") for folder in merges)
    assert first.tobytes() == second.tobytes()
