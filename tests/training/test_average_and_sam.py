"""Means of weights along a run and sharpness-aware steps, compared with plain loops of torch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from hubmerge.errors import UsageError
from hubmerge.specs import TrainSpec, validate_spec
from hubmerge.tasks.data import Split
from hubmerge.training.batches import Batches, ProcessShard
from hubmerge.training.fit import Fit, make_fit
from tests.training.builders import (
    curve,
    iterate_training,
    make_learner_of,
    make_spec,
    make_tiny_fit,
    run_training,
    weight_bytes,
)

Weights = dict[str, Tensor]


def weights(fit: Fit) -> Weights:
    return {name: p.detach().clone() for name, p in fit.trained_parameters()}


def pushed_weights(spec: TrainSpec, training: Split, validation: Split) -> list[Weights]:
    """The weights while each pushed step could be saved."""
    fit = make_tiny_fit(spec, validation)
    events = iterate_training(fit, training, validation)
    return [weights(fit) for event in events if event.pushed]


def mean(parts: list[Weights], shares: list[float]) -> Weights:
    total = sum(shares)
    return {
        name: sum((w[name] * (s / total) for w, s in zip(parts, shares, strict=True)),
                  torch.zeros(()))
        for name in parts[0]
    }  # fmt: skip


def assert_close(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-5, atol=1e-7)


FEW = {"tune": "lora", "rank": 2, "push_every": "1", "steps": 3, "lr": 1e-2}


def test_the_mean_is_pushed(training: Split, validation: Split) -> None:
    raw = pushed_weights(make_spec(**FEW), training, validation)
    decayed = pushed_weights(make_spec(**FEW, average="ema:0.5"), training, validation)
    assert_close(decayed[0], raw[0])
    assert_close(decayed[1], mean(raw[:2], [0.5, 1]))
    assert_close(decayed[2], mean(raw, [0.25, 0.5, 1]))
    last = pushed_weights(make_spec(**FEW, average="last:2"), training, validation)
    assert_close(last[1], mean(raw[:2], [1, 1]))
    assert_close(last[2], mean(raw[1:], [1, 1]))


@pytest.mark.parametrize("average", ["ema:0.9", "last:2"])
def test_a_resumed_run_has_the_same_mean(training: Split, validation: Split, average: str) -> None:
    spec = make_spec(**FEW, average=average)
    fit = make_tiny_fit(spec, validation)
    positions, whole = [], []
    for event in iterate_training(fit, training, validation):
        positions.append(event.position())
        whole.append(event)
        last = weight_bytes(fit)
    assert len(positions) == 4
    resumed = make_tiny_fit(spec, validation)
    events = []
    for event in iterate_training(resumed, training, validation, start=positions[2]):
        events.append(event)
        assert weight_bytes(resumed) == last
    assert curve(events) == curve(whole)[3:]


def test_a_sharpness_aware_step(training: Split, validation: Split) -> None:
    spec = make_spec(tune="lora", rank=2, sam=0.05, steps=1, clip=0.1, accumulate=2)
    fit = make_tiny_fit(spec, validation)
    shard = ProcessShard(0, 1)
    (batches,) = Batches(fit.learner, training, spec, shard, 0).for_steps(range(1, 2))
    reference = copy.deepcopy(fit.network)
    parameters = [p for p in reference.parameters() if p.requires_grad]

    def gradients() -> list[Tensor]:
        terms = sum(fit.learner.count_terms(batch) for batch in batches)
        loss = sum(fit.learner.loss(reference, batch) for batch in batches) / terms
        return list(torch.autograd.grad(loss, parameters))

    first = gradients()
    norm = torch.cat([g.flatten() for g in first]).norm()
    start = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, first, strict=True):
            parameter += 0.05 * gradient / norm
    worst = gradients()
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    for parameter, gradient in zip(parameters, worst, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, 0.1)
    torch.optim.AdamW(parameters, lr=spec.peak_lr, weight_decay=spec.weight_decay).step()
    fit.update(1, batches, spec.peak_lr)
    expected = [p.detach() for p in parameters]
    actual = [p.detach() for p in fit.network.parameters() if p.requires_grad]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert all((worst[n] != first[n]).any() for n in range(len(first)) if first[n].any())


def test_a_sharpness_aware_run_repeats(training: Split, validation: Split) -> None:
    spec = make_spec(**{**FEW, "steps": 1}, sam=0.5)
    once, _ = run_training(spec, training, validation)
    assert run_training(spec, training, validation)[0] == once


def test_sharded_weights_are_refused(validation: Split, tmp_path: Path) -> None:
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=True)
    spec = make_spec(**FEW, sam=0.1)
    learner = make_learner_of(spec, validation)
    state, before = accelerator.state, accelerator.state.distributed_type
    state.distributed_type = DistributedType.FSDP
    try:
        with pytest.raises(UsageError, match="not sharded"):
            make_fit(learner, spec, accelerator)
    finally:
        state.distributed_type = before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"average": "ema"}, "write ema:0.999"),
        ({"average": "ema:0.0"}, "write ema:0.999"),
        ({"average": "ema:1.5"}, "write ema:0.999"),
        ({"average": "last:0"}, "write ema:0.999"),
        ({"average": "last:4", "anneal": "branch"}, "stands in for the cool-down"),
        ({"sam": 0}, "sam"),
        ({"target_modules": "q_proj"}, "it belongs to `tune: lora`"),
        ({"modules_to_save": "lm_head", "tune": "ia3"}, "it belongs to `tune: lora`"),
        ({"load_in": "4bit"}, "it belongs to `tune: lora`"),
        ({"start_from": "a/b@step2", "anneal": "branch"}, "continues one run"),
    ],
)
def test_options_that_do_not_go_together(values: dict[str, object], message: str) -> None:
    options = {"base": "a/b", "task": "t", "to": "me/t", **values}
    with pytest.raises(UsageError, match=message):
        validate_spec(TrainSpec, options, "train")


def test_settings_of_runs_without_these_options_are_as_before() -> None:
    new = {"sam", "average", "target_modules", "modules_to_save", "load_in", "start_from"}
    assert new.isdisjoint(make_spec().settings)
    spec = make_spec(tune="lora", target_modules=["v_proj", "q_proj "], average="last:4", sam=0.1)
    assert spec.settings["target_modules"] == "q_proj,v_proj"
    assert (spec.settings["average"], spec.settings["sam"]) == ("last:4", 0.1)
