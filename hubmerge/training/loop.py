"""The training loop: it knows no Hub and no folders, it yields what others save and publish."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from hubmerge.errors import TrainingDiverged
from hubmerge.evaluation import Examples, accuracy, classifier
from hubmerge.models.vision_text import VisionText
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.training.examples import Shuffled, TrainingImages, seed_at
from hubmerge.training.schedule import push_steps, rate

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Point:
    """One point of the training curve: mean loss since the last point, validation accuracy."""

    step: int
    loss: float | None
    accuracy: float
    count: int
    lr: float


def train(
    model: VisionText,
    spec: TrainSpec,
    training: Split,
    validation: Split,
    accelerator: Accelerator,
    progress: Progress,
) -> Iterator[Point]:
    """Fine-tune the image encoder under its frozen head; yields at step 0 and at every pushed step.

    While the consumer holds a yielded point, `model` has exactly that step's weights. AdamW with
    decoupled weight decay, gradient norm clipped, linear warm-up, then constant or cosine. The
    same spec, data and machine give the same weights. Raises TrainingDiverged at the first loss
    that is not a number, before it reaches the weights.
    """
    set_seed(seed_at(spec.seed, "training") % 2**32)
    network = classifier(model, training)
    trained = [weight for weight in network.encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.lr, weight_decay=spec.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, spec.steps, spec.warmup_steps, spec.schedule)
    )
    images = TrainingImages(
        training, model.transform(spec.augment), spec.seed if spec.augment else None
    )
    order = Shuffled(len(training), spec.batch, spec.steps, spec.seed)
    loader = DataLoader(images, batch_sampler=order)
    network, optimizer, loader, scheduler = accelerator.prepare(
        network, optimizer, loader, scheduler
    )
    examples = Examples(model.transform(augment=False), validation)
    metric = validation.task.spec.metric

    def point(step: int, losses: list[float]) -> Point:
        said = accuracy(accelerator.unwrap_model(network), examples.batches(), metric)
        loss = sum(losses) / len(losses) if losses else None
        return Point(step, loss, said["value"], int(said["count"]), scheduler.get_last_lr()[0])

    yield point(0, [])
    kept, losses = set(push_steps(spec.push_every, spec.steps)), list[float]()
    network.train()
    for step, (pixels, labels) in enumerate(loader, start=1):
        loss = cross_entropy(network(pixels), labels)
        losses.append(_finite(loss.item(), step))
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(trained, spec.clip)
        _finite(float(norm), step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress(f"loss {losses[-1]:.3f}", step, spec.steps)
        if step in kept:
            yield point(step, losses)
            losses = []


def _finite(value: float, step: int) -> float:
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"The loss is no longer a number at step {step}.",
            "Every step saved before it is kept. Lower --lr, or raise --warmup.",
        )
    return value
