"""Every kind of task learns, repeats itself byte for byte, and can be trained in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from hubmerge.learners.learner import Learner
from hubmerge.learners.making import first_head, make_learner
from hubmerge.manifest import Point
from hubmerge.models.adapter import adapt
from hubmerge.models.opening import open_model
from hubmerge.models.recompute import recompute
from hubmerge.specs import DataSpec, TaskSpec, TrainSpec
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import Task
from hubmerge.training.batches import Batches
from hubmerge.training.fit import make_fit
from tests.models import worlds
from tests.training.worlds import curve, running, spec, weights

ROWS = 32
# World -> the family of its model, and what its task says beside name, data and splits.
ASKED: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "text": (worlds.tiny_bert, {"kind": "text", "templates": ["{} films"]}),
    "text, trained head": (worlds.tiny_bert, {"kind": "text", "head": "trained"}),
    "image, trained head": (worlds.tiny_vit, {"kind": "image", "head": "trained"}),
    "rank, T5": (worlds.tiny_t5, {"kind": "rank"}),
    "rank, GPT-2": (worlds.tiny_gpt2, {"kind": "rank"}),
    "target, Llama": (worlds.tiny_llama, {"kind": "target"}),
}
PROMPTS = {
    "rank": {"prompt": "{{ text }}?", "choices": ["bad", "good and fun"], "answer": "label"},
    "target": {"prompt": "{{ text }}?", "target": "{{ ['dull', 'good'][label] }}"},
}
World = tuple[Path, Split, Split]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films that are good or bad, in words and more words, and in bright or dark pictures."""
    folder = tmp_path_factory.mktemp("rows")
    labels = [row % 2 for row in range(ROWS)]
    said = {
        "text": [f"{('bad', 'good')[n % 2]} films" + n % 5 * " and the cat" for n in range(ROWS)],
        "image": [Image.new("L", (16, 16), 60 + 130 * (n % 2) + n) for n in range(ROWS)],
        "label": labels,
    }
    kinds = datasets.ClassLabel(names=["bad", "good"])
    features = {"text": datasets.Value("string"), "image": datasets.Image(), "label": kinds}
    whole = datasets.Dataset.from_dict(said, features=datasets.Features(features))
    for name in ("train", "validation", "test"):
        whole.to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def of(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """The folder of a tiny model, and the training and validation rows of its task; made once."""
    made: dict[str, World] = {}
    files = {name: f"{name}.parquet" for name in ("train", "validation", "test")}
    splits = {name: name for name in files}

    def one(name: str) -> World:
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            make, said = ASKED[name]
            make(folder)
            data = DataSpec(path=rows, files=files)
            values = {"name": "films", "data": data, "splits": splits, "max_tokens": 32}
            task = Task(TaskSpec(**values, **said, **PROMPTS.get(said["kind"], {})), rows)
            made[name] = folder, load_split(task, "train"), load_split(task, "validation")
        return made[name]

    return one


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Accelerate remembers the precision of its first user."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def learner(world: World, asked: TrainSpec) -> Learner:
    folder, training, _ = world
    model: Any = open_model(folder, training.task.spec.kind)
    head = first_head(model, training.task, training.classes)
    adapted = adapt(model, asked, "me/tiny", "0" * 40).model if asked.tune != "full" else model
    made = make_learner(adapted, training.task, head, asked.augment)
    if asked.recompute:
        recompute(model)
    return made


def trained(world: World, **said: Any) -> tuple[list[Point], bytes]:
    """The curve of a run and what it leaves."""
    asked = spec(**{"steps": 12, "push_every": "4", "lr": 3e-3, "warmup": 0.0, **said})
    mixed = "bf16" if asked.precision == "bf16" else "no"
    fit = make_fit(learner(world, asked), asked, Accelerator(cpu=True, mixed_precision=mixed))
    return curve(list(running(fit, *world[1:]))), weights(fit)


def losses(points: list[Point]) -> list[float]:
    return [point.loss for point in points if point.loss is not None]


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", ASKED)
def test_every_kind_learns_and_repeats_itself(
    of: Callable[[str], World], name: str, tune: str
) -> None:
    asked = {"tune": tune, "lr": 3e-3 if tune == "full" else 1e-2}
    points, held = trained(of(name), **asked)
    told = losses(points)
    assert told[2] < 0.9 * told[0]
    torch.rand(3)
    assert trained(of(name), **asked) == (points, held)


@pytest.mark.parametrize("name", ASKED)
def test_every_kind_trains_in_bf16(of: Callable[[str], World], name: str) -> None:
    wide, narrow = (trained(of(name), precision=one) for one in ("fp32", "bf16"))
    assert wide[1] != narrow[1]
    assert len(wide[1]) == len(narrow[1])  # the weights themselves stay in float32
    assert losses(narrow[0]) == pytest.approx(losses(wide[0]), rel=0.1, abs=0.1)


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", ASKED)
def test_recomputing_changes_no_loss(of: Callable[[str], World], name: str, tune: str) -> None:
    told = [
        losses(trained(of(name), recompute=each, tune=tune, steps=3, push_every="1")[0])
        for each in (False, True)
    ]
    assert told[0] == pytest.approx(told[1], rel=1e-5)
    assert len(told[0]) == 3


@pytest.mark.parametrize("name", ["rank, T5", "rank, GPT-2"])
def test_a_prefix_learns(of: Callable[[str], World], name: str) -> None:
    points, held = trained(of(name), tune="prefix", rank=4, lr=3e-2)
    told = losses(points)
    assert told[2] < 0.98 * told[0]
    assert trained(of(name), tune="prefix", rank=4, lr=3e-2) == (points, held)


def test_texts_of_like_length_come_together(of: Callable[[str], World]) -> None:
    world = of("text")
    points, held = trained(world, bucket=True)
    assert losses(points)[2] < 0.9 * losses(points)[0]
    assert trained(world, bucket=True) == (points, held)
    assert trained(world)[1] != held

    def padding(bucket: bool) -> int:
        asked = spec(bucket=bucket)
        made = Batches(learner(world, asked), world[1], asked).of(range(1, 5))
        return sum(int((1 - micro["attention_mask"]).sum()) for step in made for micro in step)

    assert padding(bucket=True) < padding(bucket=False) / 2


def test_only_the_encoder_of_a_text_under_labels_is_trained(of: Callable[[str], World]) -> None:
    made = learner(of("text"), spec())
    names = [name for name, weight in made.network.named_parameters() if weight.requires_grad]
    assert names
    assert all(name.startswith("encoder.") for name in names)


def test_a_trained_head_is_trained_with_an_adapter(of: Callable[[str], World]) -> None:
    made = learner(of("text, trained head"), spec(tune="lora"))
    names = {name for name, weight in made.network.named_parameters() if weight.requires_grad}
    assert {name for name in names if "lora_" not in name} == {"head.weight", "head.bias"}
