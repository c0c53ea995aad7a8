"""Training every kind of task: the loss falls, runs repeat byte for byte, all options work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.learners.learner import Learner
from hubmerge.models.adapter import add_adapter
from hubmerge.models.recompute import enable_recompute
from hubmerge.specs import DataSpec, TaskSpec, TrainSpec
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import Task
from hubmerge.training.batches import Batches
from hubmerge.training.fit import make_fit
from hubmerge.training.inputs import TrainingCallbacks
from hubmerge.training_curve import ValidationPoint
from tests.models import builders
from tests.models.builders import load_copy
from tests.training.builders import curve, iterate_training, make_spec, weight_bytes

ROWS, FILMS = 32, ("dull films are bad, bad, bad", "fun fun fun good films")
# Case -> builder of its model, and fields of its task besides name, data and splits.
CASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "text": (builders.tiny_bert, {"kind": "text", "templates": ["{} films"]}),
    "text, trained head": (builders.tiny_bert, {"kind": "text", "head": "trained"}),
    "image, trained head": (builders.tiny_vit, {"kind": "image", "head": "trained"}),
    "rank, T5": (builders.tiny_t5, {"kind": "rank"}),
    "rank, GPT-2": (builders.tiny_gpt2, {"kind": "rank"}),
    "target, Llama": (builders.tiny_llama, {"kind": "target"}),
}
PROMPTS = {
    "rank": {"prompt": "{{ text }}?", "choices": ["bad", "good and fun"], "answer": "label"},
    "target": {"prompt": "{{ text }}?", "target": "{{ ['dull', 'good'][label] }}"},
}
# Every case is in the fast suite once; what takes seconds in all is tried for the others by
# `make test-slow`.
_FAST = {
    ("text", "full"), ("text, trained head", "lora"), ("image, trained head", "full"),
    ("rank, T5", "lora"), ("rank, GPT-2", "full"), ("target, Llama", "lora"),
}  # fmt: skip
EACH_TUNED = [
    pytest.param(name, tune, marks=() if (name, tune) in _FAST else pytest.mark.slow)
    for name in CASES
    for tune in ("full", "lora")
]
ATTENTION = (".attention", ".attn", ".self_attn", ".SelfAttention")
Case = tuple[Path, Split, Split]  # model folder, training rows, validation rows
Cases = Callable[[str], Case]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files with good and bad films: short and long texts, bright and dark images."""
    folder = tmp_path_factory.mktemp("rows")
    labels = [row % 2 for row in range(ROWS)]
    columns = {
        "text": [FILMS[n % 2] + n % 5 * " of the cat" for n in range(ROWS)],
        "image": [Image.new("L", (16, 16), 60 + 130 * (n % 2) + n) for n in range(ROWS)],
        "label": labels,
    }
    label = datasets.ClassLabel(names=["bad", "good"])
    features = {"text": datasets.Value("string"), "image": datasets.Image(), "label": label}
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    for name in ("train", "validation", "test"):
        dataset.to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def case_of(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """The folder of a tiny model, and the training and validation splits of its task; cached."""
    cases: dict[str, Case] = {}
    files = {name: f"{name}.parquet" for name in ("train", "validation", "test")}
    splits = {name: name for name in files}

    def build(name: str) -> Case:
        if name not in cases:
            folder = tmp_path_factory.mktemp("model")
            write_model, fields = CASES[name]
            write_model(folder)
            data = DataSpec(path=rows, files=files)
            values = {"name": "films", "data": data, "splits": splits, **fields}
            task = Task(TaskSpec(**values, **PROMPTS.get(fields["kind"], {})), rows)
            validation = load_split(task, "validation").select(range(8))
            cases[name] = folder, load_split(task, "train"), validation
        return cases[name]

    return build


@pytest.fixture(autouse=True)
def reset_accelerate() -> Iterator[None]:
    """Accelerate keeps the precision of its first user, so reset it after every test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def learner(case: Case, spec: TrainSpec) -> Learner:
    folder, training, _ = case
    model: Any = load_copy(folder, training.task.spec.kind)
    head = initial_head(model, training.task, training.classes)
    adapted = add_adapter(model, spec, "me/tiny", "0" * 40).model if spec.tune != "full" else model
    result = make_learner(adapted, training.task, head, spec.augment)
    if spec.recompute:
        enable_recompute(model)
    return result


@dataclass(frozen=True)
class Run:
    """The loss of every step, the curve, and the final weights of a run."""

    losses: list[float]
    points: list[ValidationPoint]
    weights: bytes

    @property
    def loss_ratio(self) -> float:
        """The loss of the last two steps divided by that of the first two."""
        return sum(self.losses[-2:]) / sum(self.losses[:2])


def trained(case: Case, **settings: Any) -> Run:
    lr = {"lora": 1e-2, "prefix": 0.2}.get(settings.get("tune", "full"), 3e-3)
    spec = make_spec(**{"steps": 10, "push_every": "10", "lr": lr, "warmup": 0.0, **settings})
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = "bf16" if spec.precision == "bf16" else "no"
    fit = make_fit(learner(case, spec), spec, Accelerator(cpu=True, mixed_precision=precision))
    losses: list[float] = []
    callbacks = TrainingCallbacks(
        log_metrics=lambda metrics, _: losses.extend(metrics[n] for n in metrics if n == "loss")
    )
    points = curve(list(iterate_training(fit, *case[1:], callbacks=callbacks)))
    return Run(losses, points, weight_bytes(fit))


@pytest.fixture(scope="module")
def plain_run(case_of: Cases) -> Callable[[str, str], Run]:
    """The run of a case with default options, by name and `tune`; trained once."""
    return cache(lambda name, tune: trained(case_of(name), tune=tune))


@pytest.mark.parametrize(("name", "tune"), EACH_TUNED)
def test_every_kind_learns_and_runs_repeat(
    case_of: Cases, plain_run: Callable[[str, str], Run], name: str, tune: str
) -> None:
    run = plain_run(name, tune)
    assert run.loss_ratio < 0.9
    torch.rand(3)
    assert trained(case_of(name), tune=tune) == run


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if (name, "full") in _FAST else pytest.mark.slow) for name in CASES
])  # fmt: skip
def test_every_kind_trains_in_bf16(
    case_of: Cases, plain_run: Callable[[str, str], Run], name: str
) -> None:
    full, half = plain_run(name, "full"), trained(case_of(name), precision="bf16")
    assert half.losses == pytest.approx(full.losses, rel=0.1, abs=0.05)
    assert full.losses != half.losses
    assert len(full.weights) == len(half.weights)  # the weights themselves stay in float32


@pytest.mark.parametrize(("name", "tune"), EACH_TUNED)
def test_recompute_keeps_the_losses(case_of: Cases, name: str, tune: str) -> None:
    settings = {"tune": tune, "steps": 3, "push_every": "3"}
    expected, recomputed = (
        trained(case_of(name), recompute=each, **settings) for each in (False, True)
    )
    assert recomputed.losses == pytest.approx(expected.losses, rel=1e-5)


@pytest.mark.parametrize(("name", "tune"), EACH_TUNED)
def test_recompute_runs_layers_twice(case_of: Cases, name: str, tune: str) -> None:
    """Every attention layer is called in the forward pass and again in the backward pass."""

    def calls(spec: TrainSpec) -> int:
        task_learner = learner(case_of(name), spec)
        called: list[str] = []
        for layer, module in task_learner.network.train().named_modules():
            if layer.endswith(ATTENTION):
                module.register_forward_hook(lambda *_, layer=layer: called.append(layer))
        (batch,) = next(Batches(task_learner, case_of(name)[1], spec).for_steps(range(1, 2)))
        torch.autograd.backward(task_learner.loss(task_learner.network, batch))
        assert len(set(called)) >= builders.LAYERS
        return len(called)

    without, recomputed = (calls(make_spec(recompute=each, tune=tune)) for each in (False, True))
    assert recomputed == 2 * without


@pytest.mark.parametrize("name", [pytest.param("rank, T5", marks=pytest.mark.slow), "rank, GPT-2"])
def test_prefix_tuning_learns(case_of: Cases, name: str) -> None:
    run = trained(case_of(name), tune="prefix", rank=4)
    assert run.loss_ratio < 0.95
    assert trained(case_of(name), tune="prefix", rank=4) == run


def test_bucketing_groups_texts_of_similar_length(
    case_of: Cases, plain_run: Callable[[str, str], Run]
) -> None:
    case = case_of("text")
    run = trained(case, bucket=True)
    assert run.loss_ratio < 0.9
    assert trained(case, bucket=True) == run
    assert plain_run("text", "full").losses != run.losses

    def padding(bucket: bool) -> int:
        spec = make_spec(bucket=bucket)
        batches = Batches(learner(case, spec), case[1], spec).for_steps(range(1, 5))
        return sum(int((1 - micro["attention_mask"]).sum()) for step in batches for micro in step)

    assert padding(bucket=True) < padding(bucket=False) / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packed_steps_have_the_losses_of_rows_apart(case_of: Cases, precision: str) -> None:
    case = case_of("target, Llama")

    def losses(pack: bool, accumulate: int = 1, workers: int = 0) -> list[float]:
        spec = make_spec(steps=3, push_every="3", accumulate=accumulate, precision=precision)
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = "bf16" if precision == "bf16" else "no"
        whole: Any = learner(case, spec)
        packed = dataclasses.replace(whole, packs=pack)
        fit = make_fit(packed, spec, Accelerator(cpu=True, mixed_precision=mixed))
        steps = Batches(packed, case[1], spec, workers=workers).for_steps(range(1, 4))
        return [fit.update(step, batches, 1e-3) for step, batches in enumerate(steps, start=1)]

    rel = 1e-5 if precision == "fp32" else 2e-2
    expected, packed = losses(pack=False), losses(pack=True)
    assert packed == pytest.approx(expected, rel=rel)
    assert packed != expected
    assert losses(pack=True, workers=1) == packed
    assert losses(pack=True, accumulate=2) == pytest.approx(packed, rel=rel)


def test_only_the_text_encoder_is_trained_with_a_head_of_labels(case_of: Cases) -> None:
    task_learner = learner(case_of("text"), make_spec())
    names = [
        name for name, weight in task_learner.network.named_parameters() if weight.requires_grad
    ]
    assert names
    assert all(name.startswith("encoder.") for name in names)


def test_a_trained_head_is_trained_with_an_adapter(case_of: Cases) -> None:
    task_learner = learner(case_of("text, trained head"), make_spec(tune="lora"))
    names = {
        name for name, weight in task_learner.network.named_parameters() if weight.requires_grad
    }
    assert {name for name in names if "lora_" not in name} == {"head.weight", "head.bias"}
