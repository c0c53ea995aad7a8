"""hubmerge.load_moe: a mixture in Python answers as `hubmerge eval` says, and can be given away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import CLIPModel

import hubmerge as package
from hubmerge.errors import UnknownName, UsageError
from hubmerge.flows.load import Moe
from hubmerge.moerging.layer import MixtureLinear
from hubmerge.moerging.remote_code.peft_mixture import load_mixture
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.weights.moe_config import EXPERTS
from tests.journey.conftest import Command, World
from tests.journey.moes import HEBREW, LORA, MNIST, ask, train, train_loras
from tests.journey.test_moe_bad_input import images
from tests.models.worlds import write_transformers

TO = "moes/loaded"


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two experts as it starts, published as moes/loaded@step0."""
    train_loras()
    out = tmp_path_factory.mktemp("loaded") / "out"
    words = (MNIST, HEBREW, "--train-steps", "0", "--push", TO, "--out", out)
    said = ask("moerge", *words)
    assert said.code == 0, said.err
    return out


@pytest.fixture
def moe(folder: Path, hubmerge: Command) -> Moe:
    return package.load_moe(f"{TO}@step0", hub="local", device="cpu")


@pytest.fixture
def split() -> Split:
    return load_split(find_task("mini-mnist"), "test")


def rows(split: Split, many: int) -> tuple[list[Image.Image], list[str]]:
    pairs: list[Any] = [split.example(row) for row in range(many)]
    return [image for image, _ in pairs], [split.classes[label] for _, label in pairs]


def test_it_is_right_as_often_as_eval_says(
    moe: Moe, split: Split, hubmerge: Command, folder: Path
) -> None:
    pictures, labels = rows(split, len(split))
    answers = moe(pictures, task="mini-mnist", batch_size=100)
    right = sum(one["label"] == label for one, label in zip(answers, labels, strict=True))
    said = hubmerge("eval", folder, "--tasks", "mini-mnist", "--json")
    assert right / len(split) == pytest.approx(said.data[0]["value"])
    assert all(1 / len(split.classes) <= one["score"] <= 1 for one in answers)


def test_one_many_none_and_any_batch(moe: Moe, split: Split) -> None:
    pictures, _ = rows(split, 5)
    together = moe(pictures, task="mini-mnist")
    (alone,) = moe(pictures[0], task="mini-mnist")
    assert alone["label"] == together[0]["label"]
    assert alone["score"] == pytest.approx(together[0]["score"], abs=1e-5)
    for size in (1, 2):
        parts = moe(pictures, task="mini-mnist", batch_size=size)
        assert [one["label"] for one in parts] == [one["label"] for one in together]
    assert moe([], task="mini-mnist") == []


def test_by_name_and_by_folder_it_is_the_same(moe: Moe, folder: Path, split: Split) -> None:
    other = package.load_moe(folder, hub="local")
    pictures, _ = rows(split, 3)
    assert other(pictures, task="mini-hebrew") == moe(pictures, task="mini-hebrew")
    assert moe.tasks.keys() == {"mini-mnist", "mini-hebrew"}
    assert any(isinstance(part, MixtureLinear) for part in moe.module.modules())
    assert not any(part.training for part in moe.module.modules())


def test_which_task_must_be_said(moe: Moe, split: Split) -> None:
    picture, _ = rows(split, 1)
    with pytest.raises(UsageError, match="mini-mnist, mini-hebrew") as refused:
        moe(picture)
    assert refused.value.hint
    with pytest.raises(UnknownName, match="mini-mnits") as unknown:
        moe(picture, task="mini-mnits")
    assert "mini-mnist" in str(unknown.value.hint)


def test_of_one_task_it_need_not_be_said(folder: Path, hubmerge: Command, split: Split) -> None:
    moe = package.load_moe(folder, tasks=["mini-mnist"], hub="local")
    picture, _ = rows(split, 1)
    assert moe(picture) == moe(picture, task="mini-mnist")


def test_what_is_no_mixture(folder: Path, hubmerge: Command) -> None:
    for ref in (MNIST, "demo/mnist@step8", "hubmerge/tiny-clip", folder / EXPERTS / "mini-mnist"):
        with pytest.raises(UsageError, match="is no mixture"):
            package.load_moe(ref, hub="local")


def test_bad_numbers(moe: Moe, split: Split) -> None:
    pictures, _ = rows(split, 2)
    for size in (0, -1):
        with pytest.raises(UsageError, match=f"batch_size is {size}"):
            moe(pictures, task="mini-mnist", batch_size=size)


def test_an_open_clip_mixture_is_not_exported(
    folder: Path, hubmerge: Command, tmp_path: Path
) -> None:
    for form in ("peft-arrow", "transformers"):
        said = hubmerge("export", f"{TO}@step0", "--as", form, "--out", tmp_path / form)
        assert said.code == 2
        assert "open_clip's layout" in said.err
        assert "hubmerge.load_moe" in said.err
        assert not (tmp_path / form).exists()
    said = hubmerge("export", MNIST, "--out", tmp_path / "x")
    assert said.code == 2
    assert "is no mixture" in said.err
    said = hubmerge("export", f"{TO}@step0", "--as", "peft", "--out", tmp_path / "x")
    assert said.code == 2
    assert "Did you mean peft-arrow?" in said.err


TASK = (
    "name: shades{}\nkind: image\ndata: {{path: pictures}}\n"
    "splits: {{test: {{of: train, fraction: 0.25}}}}\n"
)


def test_a_mixture_over_transformers_goes_out_both_ways(
    hubmerge: Command, world: World, tmp_path: Path
) -> None:
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    write_transformers(tmp_path / "base")
    api.create_repo("bases/clip")
    api.upload_folder(repo_id="bases/clip", folder_path=tmp_path / "base")
    images(tmp_path / "pictures")
    for number in (1, 2):
        task = tmp_path / f"task{number}.yaml"
        task.write_text(TASK.format(number))
        rank = ("--rank", str(number + 1))
        train(task, f"shades/e{number}", *LORA[:2], *rank, base="bases/clip")
    tasks = f"{tmp_path}/task1.yaml,{tmp_path}/task2.yaml"
    made = tmp_path / "made"
    words = ("shades/e1@step4", "shades/e2@step4", "--tasks", tasks, "--train-steps", "2")
    said = hubmerge("moerge", *words, "--batch", "8", "--lr", "1e-2", "--out", made)
    assert said.code == 0, said.err
    refused = hubmerge("eval", made)
    assert refused.code == 2
    assert "--tasks" in refused.err
    assert hubmerge("eval", made, "--tasks", tasks).code == 0
    moe = package.load_moe(made, tasks=tasks.split(","), hub="local")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = cast(Any, moe.module).get_image_features(pixel_values=pixels).pooler_output
    for form in ("peft-arrow", "transformers"):
        said = hubmerge("export", made, "--as", form, "--out", tmp_path / form, "--json")
        assert said.code == 0, said.err
        assert (tmp_path / form / "README.md").is_file()
        assert said.data == {"folder": str(tmp_path / form), "format": form}
        again = hubmerge("export", made, "--as", form, "--out", tmp_path / form)
        assert again.code == 1
        assert "--replace" in again.err
        again = hubmerge("export", made, "--as", form, "--out", tmp_path / form, "--replace")
        assert again.code == 0, again.err
    check_peft(tmp_path / "base", tmp_path / "peft-arrow", pixels, ours)
    said_of = json.loads((tmp_path / "transformers" / "config.json").read_text())
    assert "AutoModel" in said_of["auto_map"]


def check_peft(base: Path, export: Path, pixels: torch.Tensor, ours: torch.Tensor) -> None:
    """What the code in the export's README makes of it says the same."""
    model = load_mixture(CLIPModel.from_pretrained(base), export)
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
