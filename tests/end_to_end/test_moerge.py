"""hubmerge moerge on a real Hub: train, publish, repeat, evaluate and describe."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file

from hubmerge.manifest import MANIFEST_JSON, parse_manifest
from hubmerge.routing import parse_routing
from hubmerge.weights.moe_config import EXPERTS_FOLDER, MOE_CONFIG, ROUTER_WEIGHTS, read_moe_config
from tests.end_to_end.conftest import Command, CommandResult, LocalHub, run_hubmerge
from tests.end_to_end.moe_experts import (
    HEBREW,
    MNIST,
    MOE_ARGUMENTS,
    SHORT_TRAINING,
    read_folder,
    train_loras,
)
from tests.end_to_end.pictures import write_pictures

TO = "moes/mixture"
TASKS = {"mini-mnist", "mini-hebrew"}


@pytest.fixture(scope="module")
def published(
    local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CommandResult, Path]:
    """A mixture of two experts: the result of the command that published it, and its folder."""
    train_loras()
    out = tmp_path_factory.mktemp("moe") / "out"
    result = run_hubmerge("moerge", *MOE_ARGUMENTS, "--push", TO, "--out", out, "--json")
    assert result.code == 0, result.err
    return result, out


def commit_ids(api: HfApi) -> list[str]:
    return [commit.commit_id for commit in api.list_repo_commits(TO)]


@pytest.fixture
def out(published: tuple[CommandResult, Path]) -> Path:
    return published[1]


def snapshot(local_hub: LocalHub, revision: str, into: Path) -> Path:
    folder = snapshot_download(
        TO, revision=revision, endpoint=local_hub.server.url, token=False, local_dir=into
    )
    return Path(folder)


def test_the_steps_are_published(published: tuple[CommandResult, Path], api: HfApi) -> None:
    result, out = published
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(TO).tags}
    assert result.data["commits"] == tags
    assert tags.keys() == {"step2", "step4"}
    assert (result.data["repo"], result.data["folder"]) == (TO, str(out))
    points = result.data["validation"]
    assert [point["step"] for point in points] == [0, 2, 4]
    assert all(point["tasks"].keys() == TASKS for point in points)
    for point in points:
        assert point["accuracy"] == pytest.approx(sum(point["tasks"].values()) / 2)


def test_a_published_revision_equals_the_folder(
    published: tuple[CommandResult, Path], local_hub: LocalHub, tmp_path: Path
) -> None:
    _, out = published
    downloaded = read_folder(snapshot(local_hub, "step4", tmp_path / "step4"))
    local = read_folder(out)
    weights = [f"{EXPERTS_FOLDER}/{task}/{file}" for task in TASKS
               for file in ("adapter_config.json", "adapter_model.safetensors")]  # fmt: skip
    for name in (MOE_CONFIG, ROUTER_WEIGHTS, MANIFEST_JSON, *weights):
        assert downloaded[name] == local[name], name
    assert "routing.json" in downloaded
    config = read_moe_config(out)
    assert [(e.name, e.task and e.task[:5], e.step, e.source_repo) for e in config.experts] == [
        ("mini-mnist", "mini-", 4, "loras/mnist"), ("mini-hebrew", "mini-", 2, "loras/hebrew"),
    ]  # fmt: skip
    assert (config.base_model, config.layout, config.top_k) == (
        "hubmerge/tiny-clip",
        "open_clip",
        2,
    )
    assert (config.router.init, config.router.signed) == ("arrow", False)


def test_the_manifest_records_run_and_sources(
    published: tuple[CommandResult, Path], api: HfApi
) -> None:
    result, out = published
    manifest = parse_manifest((out / MANIFEST_JSON).read_bytes(), "out")
    assert (manifest.kind, manifest.method, manifest.step, manifest.last_step) == (
        "moe",
        "moe",
        4,
        4,
    )
    assert manifest.run == result.data["run"]
    tags = [
        tag for repo in ("loras/mnist", "loras/hebrew") for tag in api.list_repo_refs(repo).tags
    ]
    assert {source.sha for source in manifest.experts} <= {tag.target_commit for tag in tags}
    assert str(manifest.command).split()[:4] == ["hubmerge", "moerge", MNIST, HEBREW]


def test_the_recorded_command_builds_the_same_files(
    published: tuple[CommandResult, Path], hubmerge: Command, tmp_path: Path
) -> None:
    manifest = parse_manifest((published[1] / MANIFEST_JSON).read_bytes(), "out")
    again = hubmerge(*str(manifest.command).split()[1:], "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert again.data["run"] == published[0].data["run"]
    first, second = read_folder(published[1]), read_folder(tmp_path / "again")
    assert all(
        second[name] == first[name]
        for name in (MOE_CONFIG, ROUTER_WEIGHTS, MANIFEST_JSON, *manifest.files)
    )


def test_a_second_run_changes_nothing(
    published: tuple[CommandResult, Path], hubmerge: Command, api: HfApi, local_hub: LocalHub
) -> None:
    result, out = published
    before = read_folder(out), commit_ids(api)
    again = hubmerge("moerge", *MOE_ARGUMENTS, "--push", TO, "--out", out, "--json")
    assert again.code == 0, again.err
    assert again.data == result.data
    assert (read_folder(out), commit_ids(api)) == before


@pytest.mark.slow
def test_a_deleted_step_is_trained_again(
    published: tuple[CommandResult, Path], hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    steps = local_hub.home / "moes" / published[0].data["run"][:12] / "steps"
    before = read_folder(steps)
    for deleted in (("step2",), ("step2", "step4")):
        for step in deleted:
            shutil.rmtree(steps / step)
        again = hubmerge("moerge", *MOE_ARGUMENTS, "--json")
        assert again.code == 0, again.err
        after = read_folder(steps)
        reproducible = [
            name
            for name in before
            if name.endswith((".safetensors", MANIFEST_JSON, MOE_CONFIG, "routing.json"))
        ]
        assert len(reproducible) == 2 * 6
        assert all(after[name] == before[name] for name in reproducible)


def test_a_changed_step_is_not_copied(
    published: tuple[CommandResult, Path], hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    router = (
        local_hub.home / "moes" / published[0].data["run"][:12] / "steps/step4/router.safetensors"
    )
    before = router.read_bytes()
    router.write_bytes(before[:-4] + bytes(4))
    result = hubmerge("moerge", *MOE_ARGUMENTS, "--out", tmp_path / "copy")
    router.write_bytes(before)
    assert (result.code, "has changed since it was saved" in result.err) == (3, True)
    assert not (tmp_path / "copy").exists()


def test_a_mixture_is_evaluated_by_name_and_by_folder(out: Path, hubmerge: Command) -> None:
    result = hubmerge("eval", f"{TO}@step4", out, "--split", "validation", "--json")
    assert result.code == 0, result.err
    point = parse_manifest((out / MANIFEST_JSON).read_bytes(), "out").validation[-1]
    values = {
        (score["label"], score["task"].split("@")[0]): score["value"] for score in result.data
    }
    assert values == {
        (label, task): pytest.approx(value)
        for label in (f"{TO}@step4", str(out)) for task, value in point.tasks.items()
    }  # fmt: skip


def test_it_can_be_evaluated_on_other_tasks(out: Path, hubmerge: Command) -> None:
    result = hubmerge("eval", out, "--tasks", "mini-fashion", "--split", "validation", "--json")
    assert result.code == 0, result.err
    assert 0 < result.data[0]["value"] < 1


def test_the_card_names_experts_tasks_and_how_to_load_it(
    out: Path, hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    result = hubmerge("card", f"{TO}@step4")
    assert result.code == 0, result.err
    for part in (MNIST, HEBREW, "mini-mnist", "mini-hebrew", "hubmerge.load_moe"):
        assert part in result.out
    card = (snapshot(local_hub, "step4", tmp_path / "step4") / "README.md").read_text()
    for part in (MNIST, HEBREW, "hubmerge.load_moe"):
        assert part in card


def test_routing_statistics_match_the_configuration(out: Path) -> None:
    routing = parse_routing((out / "routing.json").read_bytes(), "out")
    config = read_moe_config(out)
    assert routing.split == "validation"
    assert {task.partition("@")[0] for task in routing.tasks} == TASKS
    assert routing.experts == tuple(expert.name for expert in config.experts)
    assert routing.layers == config.modules
    parameters = routing.cost.parameters
    files = [load_file(path) for path in out.rglob("*.safetensors")]
    added = sum(tensor.numel() for tensors in files for tensor in tensors.values())
    assert parameters.mixture - parameters.base == added


def test_a_dry_run_writes_nothing(
    hubmerge: Command, local_hub: LocalHub, published: Any, api: HfApi
) -> None:
    before = {str(path) for path in (local_hub.home / "moes").rglob("*")}
    words = ("moerge", *MOE_ARGUMENTS, "--seed", "9", "--push", "moes/never", "--dry-run")
    result = hubmerge(*words, "--json")
    assert result.code == 0, result.err
    assert result.data["steps"] == [2, 4]
    assert {str(path) for path in (local_hub.home / "moes").rglob("*")} == before
    assert not api.repo_exists("moes/never")


def untrained_router(hubmerge: Command, folder: Path, *words: object) -> dict[str, torch.Tensor]:
    """Build a mixture without training and return its router."""
    result = hubmerge(
        "moerge", MNIST, HEBREW, "--train-steps", "0", *words, "--out", folder, "--json"
    )
    assert result.code == 0, result.err
    (point,) = result.data["validation"]
    assert (point["step"], point["loss"], result.data["commits"]) == (0, None, {})
    return load_file(folder / ROUTER_WEIGHTS)


@pytest.mark.parametrize("router", ["zero", "random", "centroid", "arrow"])
def test_router_starts(published: Any, hubmerge: Command, tmp_path: Path, router: str) -> None:
    tasks = () if router == "centroid" else ("--tasks", "mini-mnist")  # it needs every expert's
    layers = untrained_router(hubmerge, tmp_path / "moe", "--router", router, *tasks)
    norms = torch.stack([rows.norm(dim=1) for rows in layers.values()])
    expected = torch.zeros_like(norms) if router == "zero" else torch.ones_like(norms)
    torch.testing.assert_close(norms, expected)
    config = read_moe_config(tmp_path / "moe").router
    assert (config.init, config.signed) == (router, router != "arrow")
    if router == "centroid":  # two centroids are at the same distance from their mean
        assert all(torch.allclose(rows[0], -rows[1], atol=1e-5) for rows in layers.values())


@pytest.mark.slow
def test_a_centroid_start_depends_on_the_examples(
    published: Any, hubmerge: Command, tmp_path: Path
) -> None:
    words = ("--router", "centroid", "--max-examples")
    few = untrained_router(hubmerge, tmp_path / "few", *words, "2")
    many = untrained_router(hubmerge, tmp_path / "many", *words, "32")
    assert all(not torch.equal(few[name], many[name]) for name in few)


def test_untrained_experts_are_copies_of_their_sources(
    published: Any, hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    untrained_router(hubmerge, tmp_path / "moe", "--tasks", "mini-mnist")
    for repo, step in (("mnist", "step4"), ("hebrew", "step2")):
        source = snapshot_download(f"loras/{repo}", revision=step, endpoint=local_hub.server.url,
                                   token=False, local_dir=tmp_path / repo)  # fmt: skip
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            copy = tmp_path / "moe" / EXPERTS_FOLDER / f"mini-{repo}" / name
            assert copy.read_bytes() == (Path(source) / name).read_bytes()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two small tasks."""
    root = tmp_path_factory.mktemp("pictures")
    return write_pictures(root / "first", 0), write_pictures(root / "second", 1)


def train_router(hubmerge: Command, tasks: tuple[str, ...], folder: Path, *words: object) -> bytes:
    """Train a router for two steps and return its file."""
    result = hubmerge("moerge", MNIST, HEBREW, "--tasks", ",".join(tasks), "--train-steps", "2",
                    *SHORT_TRAINING, "--no-augment", *words, "--out", folder, "--json")  # fmt: skip
    assert result.code == 0, result.err
    return (folder / ROUTER_WEIGHTS).read_bytes()


@pytest.mark.slow
def test_which_options_change_the_router(
    published: Any, hubmerge: Command, pictures: tuple[str, str], tmp_path: Path
) -> None:
    """Recomputing activations or accumulating gradients changes only the rounding."""
    train = partial(train_router, hubmerge, pictures)
    plain = train(tmp_path / "plain")
    assert train(tmp_path / "sampled", "--sampling", "proportional") == plain
    variants = {
        "balanced": ("--balance", "5"),
        "top1": ("--top-k", "1"),
        "seed": ("--seed", "1"),
        "hot": ("--temperature", "3"),
    }
    routers = [train(tmp_path / name, *words) for name, words in variants.items()]
    alone = train_router(hubmerge, pictures[:1], tmp_path / "alone")
    assert len({plain, alone, *routers}) == 2 + len(variants)
    for name, words in {"again": ("--recompute",), "parts": ("--accumulate", "2")}.items():
        train(tmp_path / name, *words)
        expected, actual = (
            load_file(tmp_path / folder / ROUTER_WEIGHTS) for folder in ("plain", name)
        )
        for layer in expected:
            torch.testing.assert_close(expected[layer], actual[layer], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_balance_evens_the_load(
    published: Any, hubmerge: Command, pictures: tuple[str, str], tmp_path: Path
) -> None:
    spread = []
    for balance in ("0", "100"):
        folder = tmp_path / balance
        words = ("--balance", balance, "--lr", "3e-2", "--train-steps", "8", "--top-k", "1")
        train_router(hubmerge, pictures, folder, *words)
        routing = parse_routing((folder / "routing.json").read_bytes(), balance)
        spread.append(sum(abs(share - 0.5) for layers in routing.share for share, _ in layers))
    assert spread[1] < spread[0]


def test_validation_is_printed_as_a_table(published: Any, hubmerge: Command) -> None:
    result = hubmerge("moerge", *MOE_ARGUMENTS, "--push", TO)
    assert result.code == 0, result.err
    for part in ("step2", "step4", "mini-mnist", "mini-hebrew", "validation %"):
        assert part in " ".join(result.out.split())


def test_the_curve_is_in_the_folder_but_not_in_the_manifest(out: Path) -> None:
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((out / MANIFEST_JSON).read_text())
    assert "curve.png" not in manifest["files"]


def test_changing_an_exported_folder_does_not_change_the_run(
    published: Any, hubmerge: Command, tmp_path: Path
) -> None:
    untrained_router(hubmerge, tmp_path / "copy", "--seed", "5")
    with (tmp_path / "copy" / ROUTER_WEIGHTS).open("r+b") as file:
        file.truncate(9)
    untrained_router(hubmerge, tmp_path / "again", "--seed", "5")
    assert hubmerge("verify", tmp_path / "again").code == 0
