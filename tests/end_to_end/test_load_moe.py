"""hubmerge.load_moe predicts as `hubmerge eval` does; mixtures of experts can be exported."""

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
from hubmerge.moerging.layer import MoeLinear
from hubmerge.moerging.remote_code.peft_moe import load_peft_moe
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.weights.moe_config import EXPERTS_FOLDER
from tests.end_to_end.conftest import Command, LocalHub, run_hubmerge
from tests.end_to_end.moe_experts import HEBREW, LORA, MNIST, train_expert, train_loras
from tests.end_to_end.test_moe_bad_input import write_images
from tests.models.builders import write_transformers

pytestmark = pytest.mark.slow

TO = "moes/loaded"


@pytest.fixture(scope="module")
def folder(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two experts before training, published as moes/loaded@step0."""
    train_loras()
    out = tmp_path_factory.mktemp("loaded") / "out"
    words = (MNIST, HEBREW, "--train-steps", "0", "--push", TO, "--out", out)
    result = run_hubmerge("moerge", *words)
    assert result.code == 0, result.err
    return out


@pytest.fixture
def moe(folder: Path, hubmerge: Command) -> Moe:
    return package.load_moe(f"{TO}@step0", hub="local", device="cpu")


@pytest.fixture
def split() -> Split:
    return load_split(find_task("mini-mnist"), "test")


def first_examples(split: Split, count: int) -> tuple[list[Image.Image], list[str]]:
    """The first images of a split, and the names of their classes."""
    examples: list[Any] = [split.example(row) for row in range(count)]
    return [image for image, _ in examples], [split.classes[label] for _, label in examples]


def test_accuracy_is_that_of_eval(moe: Moe, split: Split, hubmerge: Command, folder: Path) -> None:
    images, labels = first_examples(split, len(split))
    predictions = moe(images, task="mini-mnist", batch_size=100)
    correct = sum(
        prediction["label"] == label for prediction, label in zip(predictions, labels, strict=True)
    )
    result = hubmerge("eval", folder, "--tasks", "mini-mnist", "--json")
    assert correct / len(split) == pytest.approx(result.data[0]["value"])
    lowest = 1 / len(split.classes)
    assert all(lowest <= prediction["score"] <= 1 for prediction in predictions)


def test_inputs_of_any_number_and_batch_size(moe: Moe, split: Split) -> None:
    images, _ = first_examples(split, 5)
    predictions = moe(images, task="mini-mnist")
    (single,) = moe(images[0], task="mini-mnist")
    assert single["label"] == predictions[0]["label"]
    assert single["score"] == pytest.approx(predictions[0]["score"], abs=1e-5)
    for size in (1, 2):
        batched = moe(images, task="mini-mnist", batch_size=size)
        assert [p["label"] for p in batched] == [p["label"] for p in predictions]
    assert moe([], task="mini-mnist") == []


def test_names_and_folders_load_the_same_model(moe: Moe, folder: Path, split: Split) -> None:
    other = package.load_moe(folder, hub="local")
    images, _ = first_examples(split, 3)
    assert other(images, task="mini-hebrew") == moe(images, task="mini-hebrew")
    assert moe.tasks.keys() == {"mini-mnist", "mini-hebrew"}
    assert any(isinstance(module, MoeLinear) for module in moe.module.modules())
    assert not any(module.training for module in moe.module.modules())


def test_several_tasks_need_the_option_task(moe: Moe, split: Split) -> None:
    image, _ = first_examples(split, 1)
    with pytest.raises(UsageError, match="mini-mnist, mini-hebrew") as refused:
        moe(image)
    assert refused.value.hint
    with pytest.raises(UnknownName, match="mini-mnits") as unknown:
        moe(image, task="mini-mnits")
    assert "mini-mnist" in str(unknown.value.hint)


def test_a_single_task_is_the_default(folder: Path, hubmerge: Command, split: Split) -> None:
    moe = package.load_moe(folder, tasks=["mini-mnist"], hub="local")
    image, _ = first_examples(split, 1)
    assert moe(image) == moe(image, task="mini-mnist")


def test_other_models_are_refused(folder: Path, hubmerge: Command) -> None:
    for ref in (
        MNIST,
        "demo/mnist@step8",
        "hubmerge/tiny-clip",
        folder / EXPERTS_FOLDER / "mini-mnist",
    ):
        with pytest.raises(UsageError, match="is not a mixture of experts"):
            package.load_moe(ref, hub="local")


def test_batch_sizes_below_one_are_refused(moe: Moe, split: Split) -> None:
    images, _ = first_examples(split, 2)
    for size in (0, -1):
        with pytest.raises(UsageError, match=f"batch_size is {size}"):
            moe(images, task="mini-mnist", batch_size=size)


def test_a_mixture_on_open_clip_is_not_exported(
    folder: Path, hubmerge: Command, tmp_path: Path
) -> None:
    for layout in ("peft-arrow", "transformers"):
        result = hubmerge("export", f"{TO}@step0", "--as", layout, "--out", tmp_path / layout)
        assert result.code == 2
        assert "open_clip's layout" in result.err
        assert "hubmerge.load_moe" in result.err
        assert not (tmp_path / layout).exists()
    result = hubmerge("export", MNIST, "--out", tmp_path / "x")
    assert result.code == 2
    assert "is not a mixture of experts" in result.err
    result = hubmerge("export", f"{TO}@step0", "--as", "peft", "--out", tmp_path / "x")
    assert result.code == 2
    assert "Did you mean peft-arrow?" in result.err


TASK = (
    "name: shades{}\nkind: image\ndata: {{path: pictures}}\n"
    "splits: {{test: {{of: train, fraction: 0.25}}}}\n"
)


def test_a_mixture_on_transformers_is_exported_in_both_formats(
    hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    write_transformers(tmp_path / "base")
    api.create_repo("bases/clip")
    api.upload_folder(repo_id="bases/clip", folder_path=tmp_path / "base")
    write_images(tmp_path / "pictures")
    for number in (1, 2):
        task = tmp_path / f"task{number}.yaml"
        task.write_text(TASK.format(number))
        rank = ("--rank", str(number + 1))
        train_expert(task, f"shades/e{number}", *LORA[:2], *rank, base="bases/clip")
    tasks = f"{tmp_path}/task1.yaml,{tmp_path}/task2.yaml"
    out = tmp_path / "out"
    words = ("shades/e1@step4", "shades/e2@step4", "--tasks", tasks, "--train-steps", "2")
    result = hubmerge("moerge", *words, "--batch", "8", "--lr", "1e-2", "--out", out)
    assert result.code == 0, result.err
    found = hubmerge("eval", out, "--json")  # the experts brought their tasks
    assert found.code == 0, found.err
    named = hubmerge("eval", out, "--tasks", tasks, "--json")
    assert named.data == found.data
    moe = package.load_moe(out, tasks=tasks.split(","), hub="local")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = cast(Any, moe.module).get_image_features(pixel_values=pixels).pooler_output
    for layout in ("peft-arrow", "transformers"):
        result = hubmerge("export", out, "--as", layout, "--out", tmp_path / layout, "--json")
        assert result.code == 0, result.err
        assert (tmp_path / layout / "README.md").is_file()
        assert result.data == {"folder": str(tmp_path / layout), "format": layout}
        again = hubmerge("export", out, "--as", layout, "--out", tmp_path / layout)
        assert again.code == 1
        assert "--replace" in again.err
        again = hubmerge("export", out, "--as", layout, "--out", tmp_path / layout, "--replace")
        assert again.code == 0, again.err
    check_peft(tmp_path / "base", tmp_path / "peft-arrow", pixels, expected)
    config = json.loads((tmp_path / "transformers" / "config.json").read_text())
    assert "AutoModel" in config["auto_map"]


def check_peft(base: Path, export: Path, pixels: torch.Tensor, expected: torch.Tensor) -> None:
    """The code in the README of the export computes the same features."""
    model = load_peft_moe(CLIPModel.from_pretrained(base), export)
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
