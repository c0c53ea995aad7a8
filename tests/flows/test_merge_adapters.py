"""Merging adapters by name: how the base is found, and which notes mixed experts get."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file

from hubmerge.errors import CheckpointError, IntegrityError, UsageError
from hubmerge.flows.merge import merge_and_publish, prepare_merge
from hubmerge.flows.prepared_merge import MergeRequest, PreparedMerge
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.publication import finalize_folder
from hubmerge.opening.references import open_ref, source_of
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.server import ServerState, lease
from tests.command_line import run_command
from tests.weights.adapters import save_adapter, write_base

pytestmark = pytest.mark.usefixtures("running_hub")

f32 = np.float32
W = f32([[1, 2, 3], [4, 5, 6]])
A, B = f32([[1, 0, 0]]), f32([[2], [0]])
Prepare = Callable[..., PreparedMerge]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A Hub with a base at two commits, and adapters that name their base in different ways."""
    root = tmp_path_factory.mktemp("hub")
    with lease(root / "hub") as state:
        api = HfApi(endpoint=state.url, token=state.token)
        for name, weight in (("base", W), ("base", W + 1), ("other", W)):
            folder = write_base(root / f"{name}{weight[0, 0]}", {"q.weight": weight}).folder
            publish(api, f"o/{name}", folder)
        first, last = (commit.commit_id for commit in api.list_repo_commits("o/base")[1::-1])
        for name, config in {
            "plain": {"base_model_name_or_path": "o/base"},
            "first": {"base_model_name_or_path": "o/base", "revision": first},
            "last": {"base_model_name_or_path": "o/base", "revision": last},
            "other": {"base_model_name_or_path": "o/other"},
            "no-base": {"base_model_name_or_path": None},
            "local-base": {"base_model_name_or_path": str(root / "base1.0")},
            "quantised": {"base_model_name_or_path": "o/base-bnb-4bit"},
            "invalid": {"base_model_name_or_path": "o/base", "revision": "../../x"},
        }.items():
            publish(api, f"o/{name}-lora", write_adapter(root / name, **config))
        yield state


def publish(api: HfApi, repo_id: str, folder: Path) -> None:
    api.create_repo(repo_id, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder)


def write_adapter(folder: Path, **config: Any) -> Path:
    return save_adapter(folder, {"q.lora_A.weight": A, "q.lora_B.weight": B}, **config).folder


@pytest.fixture
def hub(server: ServerState, tmp_path: Path) -> Hub:
    return Hub(
        server.url, lambda: server.token, tmp_path / "cache", "the test Hub", deadline_s=20.0
    )


@pytest.fixture
def prepare(hub: Hub, tmp_path: Path) -> Prepare:
    """Prepare a merge of these experts by averaging."""

    def prepare_average(*experts: str | Path, base: str | None = None) -> PreparedMerge:
        refs = tuple(parse_ref(str(expert)) for expert in experts)
        request = MergeRequest(refs, "average", {}, parse_ref(base) if base else None)
        return prepare_merge(hub, request, tmp_path / "merges")

    return prepare_average


def write_expert(hub: Hub, folder: Path, base: ModelRef, **training: str) -> Path:
    """Add a manifest to the folder, as `hubmerge train` does, and return the folder."""
    manifest = Manifest(
        kind="expert", base=source_of(open_ref(hub, base)), task="t@1", training=training
    )
    finalize_folder(folder, manifest)
    return folder


def test_the_base_is_read_from_the_adapter(hub: Hub, prepare: Prepare) -> None:
    prepared = prepare("o/plain-lora")
    assert prepared.plan.base.read("q.weight")[0, 0] == 2  # main: the last commit
    merged = merge_and_publish(hub, prepared, lambda *_: None)
    weights = load_file(merged.folder / "model.safetensors")
    assert weights["q.weight"].tolist() == (W + 1 + B @ A).tolist()
    assert not (merged.folder / "adapter_config.json").exists()
    assert prepared.notes == ()


@pytest.mark.parametrize("experts", [("first",), ("plain", "first"), ("first", "plain")])
def test_a_base_revision_of_one_adapter_is_used_for_all(
    experts: tuple[str, ...], prepare: Prepare
) -> None:
    prepared = prepare(*(f"o/{name}-lora" for name in experts))
    assert prepared.plan.base.read("q.weight")[0, 0] == 1


@pytest.mark.parametrize(
    ("experts", "error", "message"),
    [
        (("plain", "other"), IntegrityError, r"plain-lora@\w+ from o/base, o/other-lora@\w+ from"),
        (("first", "last"), IntegrityError, r"first-lora@\w+ from o/base@\w{40}, o/last-lora@"),
        (("plain", "no-base"), UsageError, r"no-base-lora@\w+ does not name the base"),
        (
            ("local-base",),
            UsageError,
            r"local-base-lora@\w+ names its base as '/.*', which is not a repository",
        ),
        (
            ("quantised",),
            UsageError,
            r"quantised-lora@\w+ was trained on o/base-bnb-4bit, a quantised copy of its base",
        ),
        (("invalid",), UsageError, "invalid-lora@.* names its base as 'o/base'"),
    ],
)
def test_bases_that_differ_or_cannot_be_used_are_refused(
    experts: tuple[str, ...], error: type[Exception], message: str, prepare: Prepare
) -> None:
    with pytest.raises(error, match=message):
        prepare(*(f"o/{name}-lora" for name in experts))


def test_the_base_option_overrides_the_adapters(prepare: Prepare) -> None:
    prepared = prepare("o/no-base-lora", "o/local-base-lora", "o/plain-lora", base="o/other")
    assert prepared.plan.base.read("q.weight")[0, 0] == 1


def test_a_local_adapter_may_name_a_local_base(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path / "base", {"q.weight": W})
    absolute = write_adapter(tmp_path / "absolute", base_model_name_or_path=str(tmp_path / "base"))
    assert prepare(absolute).plan.base.folder == tmp_path / "base"
    monkeypatch.chdir(tmp_path)
    relative = write_adapter(tmp_path / "relative", base_model_name_or_path="./base")
    assert prepare(absolute, relative).plan.base.folder.resolve() == tmp_path / "base"
    with pytest.raises(IntegrityError, match=r"from o/base"):
        prepare(absolute, "o/plain-lora")
    broken = write_adapter(tmp_path / "broken", base_model_name_or_path=str(tmp_path / "missing"))
    with pytest.raises(UsageError, match=r"no folder .*missing"):
        prepare(broken)


def test_a_manifest_overrides_the_adapter_configuration(
    hub: Hub, prepare: Prepare, tmp_path: Path
) -> None:
    base = ModelRef("o/base", revision=open_ref(hub, parse_ref("o/base")).revision.sha)
    local = write_adapter(tmp_path / "local", base_model_name_or_path="o/other")
    write_expert(hub, local, base)
    prepared = prepare(local, "o/plain-lora")
    assert prepared.manifest.base.sha == base.revision
    with pytest.raises(IntegrityError, match=r"other-lora@\w+ from o/other, .*local from o/base@"):
        prepare(local, "o/other-lora")
    with pytest.raises(IntegrityError, match=r"first-lora@\w+ from o/base@.*local from o/base@"):
        prepare(local, "o/first-lora")


def test_the_recipe_depends_on_lora_alpha(prepare: Prepare, tmp_path: Path) -> None:
    recipes = set()
    for alpha in (1, 2):
        folder = write_adapter(
            tmp_path / str(alpha), lora_alpha=alpha, base_model_name_or_path="o/base"
        )
        recipes.add(prepare(folder).manifest.recipe)
    assert len(recipes) == 2


def test_an_adapter_that_does_not_fit_the_base_is_refused_before_writing(
    prepare: Prepare, tmp_path: Path
) -> None:
    write_base(tmp_path / "base", {"k.weight": W})
    with pytest.raises(CheckpointError, match=r"Adapter o/plain-lora@\w+ has 1 tensor \(q.weight"):
        prepare("o/plain-lora", base=str(tmp_path / "base"))
    assert not (tmp_path / "merges").exists()


def test_mixed_experts_are_noted(
    hub: Hub, prepare: Prepare, tmp_path: Path, server: ServerState
) -> None:
    base = write_base(tmp_path / "base", {"q.weight": W}).folder
    ref = ModelRef(path=base)
    full = write_base(tmp_path / "full", {"q.weight": W + 1}).folder
    write_expert(hub, full, ref, anneal="branch")
    lora = write_expert(hub, write_adapter(tmp_path / "lora"), ref, anneal="trajectory")
    lora2 = write_expert(
        hub, write_adapter(tmp_path / "lora2", lora_alpha=2), ref, anneal="trajectory"
    )
    assert prepare(lora, lora2).notes == ()
    notes = prepare(full, lora, lora2).notes
    assert notes == (
        f"The experts were annealed in different ways: {full} (branch), {lora} (trajectory), "
        f"{lora2} (trajectory).",
        f"Adapters ({lora}, {lora2}) are merged with experts of which every weight was trained "
        f"({full}).",
    )
    words = ["merge", str(full), str(lora), str(lora2), "--method", "average", "--json"]
    result = run_command(*words)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["notes"] == list(notes)
    assert result.stderr.splitlines() == list(notes)
    merged = load_file(Path(json.loads(result.stdout)["folder"]) / "model.safetensors")
    assert merged["q.weight"].tolist() == (W + (1 + 3 * (B @ A)) / f32(3)).tolist()
