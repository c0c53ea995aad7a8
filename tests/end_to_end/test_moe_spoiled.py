"""Mixtures of experts with invalid files, or files changed after publication, are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hubmerge.weights.moe_config import EXPERTS_FOLDER, MOE_CONFIG, ROUTER_WEIGHTS
from tests.end_to_end.conftest import Command, LocalHub, run_hubmerge
from tests.end_to_end.moe_experts import HEBREW, MNIST, change_tensors, train_loras
from tests.models.builders import change_json

WEIGHTS = "adapter_model.safetensors"
NO_TRAINING = ("--train-steps", "0")


@pytest.fixture(scope="module")
def mixture(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two experts before training."""
    train_loras()
    out = tmp_path_factory.mktemp("moe") / "out"
    result = run_hubmerge("moerge", MNIST, HEBREW, *NO_TRAINING, "--out", out)
    assert result.code == 0, result.err
    return out


def one_line(text: str) -> str:
    return " ".join(text.split())


def copy_without_manifest(mixture: Path, folder: Path) -> Path:
    """Copy a mixture without its manifest."""
    shutil.copytree(mixture, folder)
    (folder / "hubmerge.json").unlink()
    (folder / MOE_CONFIG).write_bytes((mixture / MOE_CONFIG).read_bytes())
    return folder


def first_layer(folder: Path) -> str:
    return min(load_file(folder / ROUTER_WEIGHTS))


def link_expert(folder: Path) -> None:
    shutil.move(folder / EXPERTS_FOLDER / "mini-mnist", folder.parent / "elsewhere")
    (folder / EXPERTS_FOLDER / "mini-mnist").symlink_to(folder.parent / "elsewhere")


Change = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: change_json(f / MOE_CONFIG, "top_k", value=0), "top_k"),
        (lambda f: change_json(f / MOE_CONFIG, "top_k", value=3), "there are 2 experts"),
        (
            lambda f: change_json(f / MOE_CONFIG, "experts", value=[{"name": "../../x"}]),
            "not a valid name of",
        ),
        (
            lambda f: change_json(f / MOE_CONFIG, "experts", value=[{"name": "mini-mnist"}] * 2),
            "two",
        ),
        (lambda f: (f / MOE_CONFIG).write_text("{"), "JSON"),
        (lambda f: (f / MOE_CONFIG).write_bytes(b" " * (5 << 20)), "too large"),
        (lambda f: (f / ROUTER_WEIGHTS).write_bytes(b"junk"), "router.safetensors"),
        (lambda f: (f / ROUTER_WEIGHTS).unlink(), "router.safetensors"),
        (lambda f: change_tensors(f / ROUTER_WEIGHTS, **{first_layer(f): None}), "no finite rows"),
        (
            lambda f: change_tensors(f / ROUTER_WEIGHTS, **{first_layer(f): torch.ones(2, 3)}),
            "no finite rows",
        ),
        (
            lambda f: change_tensors(
                f / ROUTER_WEIGHTS, **{first_layer(f): torch.full((2, 64), torch.nan)}
            ),
            "no finite rows",
        ),
        (
            lambda f: change_tensors(f / ROUTER_WEIGHTS, more=torch.ones(1)),
            "do not name the same layers",
        ),
        (lambda f: shutil.rmtree(f / EXPERTS_FOLDER / "mini-mnist"), "mini-mnist"),
        (
            lambda f: shutil.copytree(f / EXPERTS_FOLDER / "mini-mnist", f / EXPERTS_FOLDER / "x"),
            "not in its configuration",
        ),
        (link_expert, "mini-mnist"),
    ],
)
def test_an_invalid_mixture_is_refused(
    mixture: Path, hubmerge: Command, tmp_path: Path, change: Change, message: str
) -> None:
    folder = copy_without_manifest(mixture, tmp_path / "invalid")
    change(folder)
    result = hubmerge("eval", folder, "--tasks", "mini-mnist")
    assert result.code == 1, result.err
    assert message in one_line(result.err)
    assert "a bug in hubmerge" not in result.err


def test_a_mixture_without_a_manifest_is_evaluated(
    mixture: Path, hubmerge: Command, tmp_path: Path
) -> None:
    folder = copy_without_manifest(mixture, tmp_path / "bare")
    result = hubmerge("eval", folder, mixture, "--tasks", "mini-mnist", "--json")
    assert result.code == 0, result.err
    assert len({score["value"] for score in result.data}) == 1


@pytest.mark.parametrize(
    "name", [ROUTER_WEIGHTS, f"{EXPERTS_FOLDER}/mini-mnist/{WEIGHTS}", MOE_CONFIG]
)
def test_a_file_replaced_after_publication_is_refused(
    mixture: Path, local_hub: LocalHub, hubmerge: Command, tmp_path: Path, name: str
) -> None:
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    to = f"moes/changed-{len(name)}"
    result = hubmerge("moerge", MNIST, HEBREW, *NO_TRAINING, "--push", to)
    assert result.code == 0, result.err
    changed = tmp_path / "changed"
    shutil.copyfile(mixture / name, changed)
    if name == MOE_CONFIG:
        change_json(changed, "top_k", value=1)
    else:
        change_tensors(changed, **{key: tensor + 1 for key, tensor in load_file(changed).items()})
    api.upload_file(repo_id=to, path_or_fileobj=changed, path_in_repo=name)
    result = hubmerge("eval", f"{to}@main", "--tasks", "mini-mnist")
    assert result.code == 3, result.err
    assert "do not match the SHA-256 in its hubmerge.json" in one_line(result.err)
    assert hubmerge("eval", f"{to}@step0", "--tasks", "mini-mnist").code == 0
