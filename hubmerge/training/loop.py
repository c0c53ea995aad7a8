"""The training loop: it knows no Hub and no folders, it yields what others save and publish."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn.functional import cross_entropy

from hubmerge.errors import CheckpointError, TrainingDiverged, UsageError
from hubmerge.evaluation import Batch, Examples, ImageClassifier, accuracy, classifier
from hubmerge.manifest import Point
from hubmerge.models.vision_text import VisionText
from hubmerge.progress import Progress
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.training.examples import seed_at, training_batches
from hubmerge.training.schedule import push_steps, rate


def train(
    model: VisionText,
    spec: TrainSpec,
    training: Split,
    validation: Split,
    accelerator: Accelerator,
    progress: Progress,
) -> Iterator[Point]:
    """Fine-tune the image encoder under its frozen head; yields at step 0 and at every pushed step.

    While the consumer holds a yielded point, `model` has exactly that step's weights. The same
    spec, data and machine give the same weights. Raises TrainingDiverged at the first loss or
    gradient that is not a number, before it reaches the weights.
    """
    _check_alone(accelerator)
    fit = _prepare(model, spec, training, accelerator)
    examples = Examples(model.transform(augment=False), validation)
    losses: list[float] = []
    yield fit.point(0, losses, examples)
    kept = set(push_steps(spec.push_every, spec.steps))
    for step, batch in enumerate(training_batches(model, training, spec), start=1):
        losses.append(fit.update(step, batch))
        progress(f"loss {losses[-1]:.3f}", step, spec.steps)
        if step in kept:
            yield fit.point(step, losses, examples)
            losses.clear()


@dataclass(frozen=True)
class _Fit:
    """A network and all it takes to update it."""

    network: ImageClassifier
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator
    spec: TrainSpec

    def update(self, step: int, batch: Batch) -> float:
        """Make update number `step`, counted from 1; returns the loss before it."""
        images, labels = (tensor.to(self.accelerator.device) for tensor in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        torch.manual_seed(seed_at(self.spec.seed, "dropout", step))
        self.network.train()
        loss = cross_entropy(self.network(images), labels)
        value = _finite("loss", loss.item(), step)
        self.accelerator.backward(loss)
        weights = self.network.encoder.parameters()
        norm = self.accelerator.clip_grad_norm_(weights, self.spec.clip)
        _finite("gradient", float(norm), step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def point(self, step: int, losses: list[float], examples: Examples) -> Point:
        """The point of the curve after update number `step`."""
        metric = examples.split.task.spec.metric
        try:
            said = accuracy(self.network, examples.batches(), metric)
        except CheckpointError as error:
            if step == 0:
                raise  # the base came like that
            raise _diverged("model's answer", step) from error
        loss = sum(losses) / len(losses) if losses else None
        return Point(step, loss, said["value"], int(said["count"]), self.lr(step))

    def lr(self, step: int) -> float:
        """The learning rate of update number `step`; 0 before the first."""
        spec = self.spec
        share = rate(step - 1, spec.steps, spec.warmup_length, spec.schedule) if step else 0.0
        return spec.lr * share


def _prepare(model: VisionText, spec: TrainSpec, training: Split, accelerator: Accelerator) -> _Fit:
    """AdamW with decoupled weight decay over the whole image encoder; the head is frozen."""
    network = classifier(model, training)
    weights = network.encoder.parameters()
    optimizer = torch.optim.AdamW(weights, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    network, optimizer = accelerator.prepare(network, optimizer)
    return _Fit(network, optimizer, accelerator, spec)


def _check_alone(accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        raise UsageError(
            "hubmerge trains one expert in one process; several would each push its steps.",
            "Start it without `accelerate launch`.",
        )


def _finite(what: str, value: float, step: int) -> float:
    if not math.isfinite(value):
        raise _diverged(what, step)
    return value


def _diverged(what: str, step: int) -> TrainingDiverged:
    return TrainingDiverged(
        f"The {what} is no longer a number at step {step}.",
        "Every step saved before it is kept. Lower --lr, or warm up for longer.",
    )
