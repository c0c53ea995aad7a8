"""Every kind of task learns, repeats itself byte for byte, and can be trained in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from hubmerge.learners.factory import first_head, make_learner
from hubmerge.learners.learner import Learner
from hubmerge.manifest import Point
from hubmerge.models.adapter import adapt
from hubmerge.models.loading import open_model
from hubmerge.models.recompute import recompute
from hubmerge.specs import DataSpec, TaskSpec, TrainSpec
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import Task
from hubmerge.training.batches import Batches
from hubmerge.training.fit import make_fit
from hubmerge.training.inputs import Watch
from tests.models import worlds
from tests.training.worlds import curve, running, spec, weights

ROWS, FILMS = 32, ("dull films are bad, bad, bad", "fun fun fun good films")
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
ATTENTION = (".attention", ".attn", ".self_attn", ".SelfAttention")
World = tuple[Path, Split, Split]
Worlds = Callable[[str], World]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films that are good or bad, in words and more words, and in bright or dark pictures."""
    folder = tmp_path_factory.mktemp("rows")
    labels = [row % 2 for row in range(ROWS)]
    said = {
        "text": [FILMS[n % 2] + n % 5 * " of the cat" for n in range(ROWS)],
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
def of(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Worlds:
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
            values = {"name": "films", "data": data, "splits": splits, **said}
            task = Task(TaskSpec(**values, **PROMPTS.get(said["kind"], {})), rows)
            made[name] = folder, load_split(task, "train"), load_split(task, "validation")
        return made[name]

    return one


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Accelerate would hold those who come later to the precision of its first user."""
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


@dataclass(frozen=True)
class Run:
    """The loss at every step, the curve, and the weights that it left."""

    losses: list[float]
    points: list[Point]
    weights: bytes

    @property
    def gain(self) -> float:
        """What is left of the loss of the first two steps in the last two."""
        return sum(self.losses[-2:]) / sum(self.losses[:2])


def trained(world: World, **said: Any) -> Run:
    lr = {"lora": 1e-2, "prefix": 0.2}.get(said.get("tune", "full"), 3e-3)
    asked = spec(**{"steps": 10, "push_every": "10", "lr": lr, "warmup": 0.0, **said})
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = "bf16" if asked.precision == "bf16" else "no"
    fit = make_fit(learner(world, asked), asked, Accelerator(cpu=True, mixed_precision=mixed))
    losses: list[float] = []
    watch = Watch(track=lambda told, _: losses.extend(told[n] for n in told if n == "loss"))
    points = curve(list(running(fit, *world[1:], watch=watch)))
    return Run(losses, points, weights(fit))


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", ASKED)
def test_every_kind_learns_and_repeats_itself(of: Worlds, name: str, tune: str) -> None:
    run = trained(of(name), tune=tune)
    assert run.gain < 0.9
    torch.rand(3)
    assert trained(of(name), tune=tune) == run


@pytest.mark.parametrize("name", ASKED)
def test_every_kind_trains_in_bf16(of: Worlds, name: str) -> None:
    wide, narrow = (trained(of(name), precision=each) for each in ("fp32", "bf16"))
    assert narrow.losses == pytest.approx(wide.losses, rel=0.1, abs=0.05)
    assert wide.losses != narrow.losses
    assert len(wide.weights) == len(narrow.weights)  # the weights themselves stay in float32


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", ASKED)
def test_recomputing_changes_no_loss(of: Worlds, name: str, tune: str) -> None:
    asked = {"tune": tune, "steps": 3, "push_every": "3"}
    plain, again = (trained(of(name), recompute=each, **asked) for each in (False, True))
    assert again.losses == pytest.approx(plain.losses, rel=1e-5)


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", ASKED)
def test_recomputing_runs_layers_again(of: Worlds, name: str, tune: str) -> None:
    """Every attention is asked twice: on the way there and on the way back."""

    def calls(asked: TrainSpec) -> int:
        made = learner(of(name), asked)
        called: list[str] = []
        for layer, module in made.network.train().named_modules():
            if layer.endswith(ATTENTION):
                module.register_forward_hook(lambda *_, layer=layer: called.append(layer))
        (batch,) = next(Batches(made, of(name)[1], asked).of(range(1, 2)))
        torch.autograd.backward(made.loss(made.network, batch))
        assert len(set(called)) >= worlds.LAYERS
        return len(called)

    plain, again = (calls(spec(recompute=each, tune=tune)) for each in (False, True))
    assert again == 2 * plain


@pytest.mark.parametrize("name", ["rank, T5", "rank, GPT-2"])
def test_a_prefix_learns(of: Worlds, name: str) -> None:
    run = trained(of(name), tune="prefix", rank=4)
    assert run.gain < 0.95
    assert trained(of(name), tune="prefix", rank=4) == run


def test_texts_of_like_length_come_together(of: Worlds) -> None:
    world = of("text")
    run = trained(world, bucket=True)
    assert run.gain < 0.9
    assert trained(world, bucket=True) == run
    assert trained(world).losses != run.losses

    def padding(bucket: bool) -> int:
        asked = spec(bucket=bucket)
        made = Batches(learner(world, asked), world[1], asked).of(range(1, 5))
        return sum(int((1 - micro["attention_mask"]).sum()) for step in made for micro in step)

    assert padding(bucket=True) < padding(bucket=False) / 2


def test_only_the_encoder_of_a_text_under_labels_is_trained(of: Worlds) -> None:
    made = learner(of("text"), spec())
    names = [name for name, weight in made.network.named_parameters() if weight.requires_grad]
    assert names
    assert all(name.startswith("encoder.") for name in names)


def test_a_trained_head_is_trained_with_an_adapter(of: Worlds) -> None:
    made = learner(of("text, trained head"), spec(tune="lora"))
    names = {name for name, weight in made.network.named_parameters() if weight.requires_grad}
    assert {name for name in names if "lora_" not in name} == {"head.weight", "head.bias"}
