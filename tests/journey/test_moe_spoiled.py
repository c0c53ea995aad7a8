"""Mixtures that somebody spoiled, or replaced after publication: named, and not opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER
from tests.journey.conftest import Command, World
from tests.journey.moes import HEBREW, MNIST, ask, changed, train_loras
from tests.models.worlds import change_json

WEIGHTS = "adapter_model.safetensors"
NONE = ("--train-steps", "0")


@pytest.fixture(scope="module")
def mixture(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two experts, as it starts."""
    train_loras()
    out = tmp_path_factory.mktemp("whole") / "out"
    said = ask("moerge", MNIST, HEBREW, *NONE, "--out", out)
    assert said.code == 0, said.err
    return out


def words_of(text: str) -> str:
    return " ".join(text.split())


def copy(mixture: Path, folder: Path) -> Path:
    """The mixture without the manifest that vouches for it."""
    shutil.copytree(mixture, folder)
    (folder / "hubmerge.json").unlink()
    (folder / CONFIG).write_bytes((mixture / CONFIG).read_bytes())
    return folder


def first_row(folder: Path) -> str:
    return min(load_file(folder / ROUTER))


def linked(folder: Path) -> None:
    shutil.move(folder / EXPERTS / "mini-mnist", folder.parent / "elsewhere")
    (folder / EXPERTS / "mini-mnist").symlink_to(folder.parent / "elsewhere")


Break = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda f: change_json(f / CONFIG, "top_k", value=0), "top_k"),
        (lambda f: change_json(f / CONFIG, "top_k", value=3), "there are 2 experts"),
        (lambda f: change_json(f / CONFIG, "experts", value=[{"name": "../../x"}]), "no name of"),
        (lambda f: change_json(f / CONFIG, "experts", value=[{"name": "mini-mnist"}] * 2), "two"),
        (lambda f: (f / CONFIG).write_text("{"), "JSON"),
        (lambda f: (f / CONFIG).write_bytes(b" " * (5 << 20)), "too large"),
        (lambda f: (f / ROUTER).write_bytes(b"junk"), "router.safetensors"),
        (lambda f: (f / ROUTER).unlink(), "router.safetensors"),
        (lambda f: changed(f / ROUTER, **{first_row(f): None}), "no rows"),
        (lambda f: changed(f / ROUTER, **{first_row(f): torch.ones(2, 3)}), "no rows"),
        (
            lambda f: changed(f / ROUTER, **{first_row(f): torch.full((2, 64), torch.nan)}),
            "no rows",
        ),
        (lambda f: changed(f / ROUTER, more=torch.ones(1)), "do not name the same layers"),
        (lambda f: shutil.rmtree(f / EXPERTS / "mini-mnist"), "mini-mnist"),
        (lambda f: shutil.copytree(f / EXPERTS / "mini-mnist", f / EXPERTS / "x"), "no expert of"),
        (linked, "mini-mnist"),
    ],
)
def test_mixtures_that_somebody_spoiled(
    mixture: Path, hubmerge: Command, tmp_path: Path, break_it: Break, sentence: str
) -> None:
    folder = copy(mixture, tmp_path / "spoiled")
    break_it(folder)
    said = hubmerge("eval", folder, "--tasks", "mini-mnist")
    assert said.code == 1, said.err
    assert sentence in words_of(said.err)
    assert "in a way it should not" not in said.err


def test_a_mixture_that_nobody_vouches_for_still_answers(
    mixture: Path, hubmerge: Command, tmp_path: Path
) -> None:
    folder = copy(mixture, tmp_path / "bare")
    said = hubmerge("eval", folder, mixture, "--tasks", "mini-mnist", "--json")
    assert said.code == 0, said.err
    assert len({score["value"] for score in said.data}) == 1


@pytest.mark.parametrize("name", [ROUTER, f"{EXPERTS}/mini-mnist/{WEIGHTS}", CONFIG])
def test_what_was_replaced_after_publication(
    mixture: Path, world: World, hubmerge: Command, tmp_path: Path, name: str
) -> None:
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    to = f"moes/forged-{len(name)}"
    said = hubmerge("moerge", MNIST, HEBREW, *NONE, "--push", to)
    assert said.code == 0, said.err
    forged = tmp_path / "forged"
    shutil.copyfile(mixture / name, forged)
    if name == CONFIG:
        change_json(forged, "top_k", value=1)
    else:
        changed(forged, **{key: t + 1 for key, t in load_file(forged).items()})
    api.upload_file(repo_id=to, path_or_fileobj=forged, path_in_repo=name)
    said = hubmerge("eval", f"{to}@main", "--tasks", "mini-mnist")
    assert said.code == 3, said.err
    assert "not those that its hubmerge.json vouches for" in words_of(said.err)
    assert hubmerge("eval", f"{to}@step0", "--tasks", "mini-mnist").code == 0
