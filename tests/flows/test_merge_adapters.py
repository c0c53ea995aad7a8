"""Merging adapters by name: from where the base comes, and what is said of mixed experts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file
from typer.testing import CliRunner

from hubmerge.cli.app import app
from hubmerge.errors import CheckpointError, IntegrityError, UsageError
from hubmerge.flows.merge import MergeRequest, Prepared, merge_and_publish, prepare
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.publication import seal
from hubmerge.opening.references import open_ref, source_of
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.server import ServerState, lease
from tests.weights.adapters import put_adapter, put_base

f32 = np.float32
W = f32([[1, 2, 3], [4, 5, 6]])
A, B = f32([[1, 0, 0]]), f32([[2], [0]])
Merging = Callable[..., Prepared]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A Hub with a base at two commits, and adapters that name it in every way."""
    root = tmp_path_factory.mktemp("hub")
    with lease(root / "hub") as state:
        api = HfApi(endpoint=state.url, token=state.token)
        for name, weight in (("base", W), ("base", W + 1), ("other", W)):
            folder = put_base(root / f"{name}{weight[0, 0]}", {"q.weight": weight}).folder
            publish(api, f"o/{name}", folder)
        first, last = (one.commit_id for one in api.list_repo_commits("o/base")[1::-1])
        for name, said in {
            "plain": {"base_model_name_or_path": "o/base"},
            "first": {"base_model_name_or_path": "o/base", "revision": first},
            "last": {"base_model_name_or_path": "o/base", "revision": last},
            "other": {"base_model_name_or_path": "o/other"},
            "silent": {"base_model_name_or_path": None},
            "nosy": {"base_model_name_or_path": str(root / "base1.0")},
            "odd": {"base_model_name_or_path": "o/base", "revision": "../../x"},
        }.items():
            publish(api, f"o/{name}-lora", adapter(root / name, **said))
        yield state


def publish(api: HfApi, repo_id: str, folder: Path) -> None:
    api.create_repo(repo_id, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder)


def adapter(folder: Path, **said: Any) -> Path:
    return put_adapter(folder, {"q.lora_A.weight": A, "q.lora_B.weight": B}, **said).folder


@pytest.fixture
def hub(server: ServerState, tmp_path: Path) -> Hub:
    return Hub(server.url, server.token, tmp_path / "cache", "the test Hub", deadline_s=20.0)


@pytest.fixture
def merging(hub: Hub, tmp_path: Path) -> Merging:
    def prepared(*experts: str | Path, base: str | None = None) -> Prepared:
        refs = tuple(parse_ref(str(expert)) for expert in experts)
        request = MergeRequest(refs, "average", {}, parse_ref(base) if base else None)
        return prepare(hub, request, tmp_path / "merges")

    return prepared


def sealed(hub: Hub, folder: Path, base: ModelRef, **training: str) -> Path:
    """The folder with a manifest, as `hubmerge train` leaves one."""
    manifest = Manifest(
        kind="expert", base=source_of(open_ref(hub, base)), task="t@1", training=training
    )
    seal(folder, manifest)
    return folder


def test_an_adapter_names_its_base(hub: Hub, merging: Merging) -> None:
    prepared = merging("o/plain-lora")
    assert prepared.plan.base.read("q.weight")[0, 0] == 2  # main: the last commit
    merged = merge_and_publish(hub, prepared, lambda *_: None)
    weights = load_file(merged.folder / "model.safetensors")
    assert weights["q.weight"].tolist() == (W + 1 + B @ A).tolist()
    assert not (merged.folder / "adapter_config.json").exists()
    assert prepared.notes == ()


@pytest.mark.parametrize("experts", [("first",), ("plain", "first"), ("first", "plain")])
def test_a_revision_that_one_adapter_says_holds_for_all(
    experts: tuple[str, ...], merging: Merging
) -> None:
    prepared = merging(*(f"o/{name}-lora" for name in experts))
    assert prepared.plan.base.read("q.weight")[0, 0] == 1


@pytest.mark.parametrize(
    ("experts", "error", "said"),
    [
        (("plain", "other"), IntegrityError, r"plain-lora@\w+ from o/base, o/other-lora@\w+ from"),
        (("first", "last"), IntegrityError, r"first-lora@\w+ from o/base@\w{40}, o/last-lora@"),
        (("plain", "silent"), UsageError, r"silent-lora@\w+ does not say which base"),
        (("nosy",), UsageError, r"nosy-lora@\w+ names its base as '/.*', which is no repository"),
        (("odd",), UsageError, "odd-lora@.* names its base as 'o/base'"),
    ],
)
def test_adapters_that_do_not_agree_or_name_what_they_may_not(
    experts: tuple[str, ...], error: type[Exception], said: str, merging: Merging
) -> None:
    with pytest.raises(error, match=said):
        merging(*(f"o/{name}-lora" for name in experts))


def test_the_base_that_is_typed_wins(merging: Merging) -> None:
    prepared = merging("o/silent-lora", "o/nosy-lora", "o/plain-lora", base="o/other")
    assert prepared.plan.base.read("q.weight")[0, 0] == 1


def test_a_local_adapter_may_name_a_local_base(
    merging: Merging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_base(tmp_path / "base", {"q.weight": W})
    mine = adapter(tmp_path / "mine", base_model_name_or_path=str(tmp_path / "base"))
    assert merging(mine).plan.base.folder == tmp_path / "base"
    monkeypatch.chdir(tmp_path)
    near = adapter(tmp_path / "near", base_model_name_or_path="./base")
    assert merging(mine, near).plan.base.folder.resolve() == tmp_path / "base"
    with pytest.raises(IntegrityError, match=r"from o/base"):
        merging(mine, "o/plain-lora")
    gone = adapter(tmp_path / "gone", base_model_name_or_path=str(tmp_path / "away"))
    with pytest.raises(UsageError, match=r"no folder .*away"):
        merging(gone)


def test_a_manifest_wins_over_the_configuration(hub: Hub, merging: Merging, tmp_path: Path) -> None:
    base = ModelRef("o/base", revision=open_ref(hub, parse_ref("o/base")).revision.sha)
    mine = adapter(tmp_path / "mine", base_model_name_or_path="o/other")
    sealed(hub, mine, base)
    prepared = merging(mine, "o/plain-lora")
    assert prepared.manifest.base.sha == base.revision
    with pytest.raises(IntegrityError, match=r"other-lora@\w+ from o/other, .*mine from o/base@"):
        merging(mine, "o/other-lora")
    with pytest.raises(IntegrityError, match=r"first-lora@\w+ from o/base@.*mine from o/base@"):
        merging(mine, "o/first-lora")


def test_another_alpha_is_another_expert(merging: Merging, tmp_path: Path) -> None:
    recipes = set()
    for alpha in (1, 2):
        folder = adapter(tmp_path / str(alpha), lora_alpha=alpha, base_model_name_or_path="o/base")
        recipes.add(merging(folder).manifest.recipe)
    assert len(recipes) == 2


def test_what_does_not_fit_is_told_before_anything_is_written(
    merging: Merging, tmp_path: Path
) -> None:
    put_base(tmp_path / "base", {"k.weight": W})
    with pytest.raises(CheckpointError, match=r"Adapter o/plain-lora@\w+ has 1 tensor \(q.weight"):
        merging("o/plain-lora", base=str(tmp_path / "base"))
    assert not (tmp_path / "merges").exists()


def test_mixed_experts_are_noted(
    hub: Hub, merging: Merging, tmp_path: Path, server: ServerState
) -> None:
    base = put_base(tmp_path / "base", {"q.weight": W}).folder
    ref = ModelRef(path=base)
    whole = put_base(tmp_path / "whole", {"q.weight": W + 1}).folder
    sealed(hub, whole, ref, anneal="branch")
    lora = sealed(hub, adapter(tmp_path / "lora"), ref, anneal="trajectory")
    again = sealed(hub, adapter(tmp_path / "again", lora_alpha=2), ref, anneal="trajectory")
    assert merging(lora, again).notes == ()
    notes = merging(whole, lora, again).notes
    assert notes == (
        f"The experts were annealed in different ways: {whole} (branch), {lora} (trajectory), "
        f"{again} (trajectory).",
        f"Adapters ({lora}, {again}) are merged with experts of which every weight was trained "
        f"({whole}).",
    )
    words = ["merge", str(whole), str(lora), str(again), "--method", "average", "--json"]
    said = CliRunner().invoke(app, words, env={"HUBMERGE_HUB": "local"})
    assert said.exit_code == 0, said.stderr
    assert json.loads(said.stdout)["notes"] == list(notes)
    assert said.stderr.splitlines() == list(notes)
    merged = load_file(Path(json.loads(said.stdout)["folder"]) / "model.safetensors")
    assert merged["q.weight"].tolist() == (W + (1 + 3 * (B @ A)) / f32(3)).tolist()
