"""A network in training: single optimizer updates, and its complete state after any of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hubmerge.errors import CheckpointError, OutOfMemory, TrainingDiverged, UsageError
from hubmerge.learners.learner import Batch, Learner
from hubmerge.specs import TrainSpec
from hubmerge.training.row_order import seed_at
from hubmerge.training.schedule import check_even_batches

# How torch reports lack of memory in a plain RuntimeError; "illegal memory access" is not that.
_OUT_OF_MEMORY_PHRASES = ("out of memory", "not enough memory", "can't allocate memory")
# Training has diverged if this many losses in a row exceed this multiple of the first loss.
EXPLOSION_WINDOW, _EXPLOSION_FACTOR = 10, 4.0


@dataclass(frozen=True)
class Fit:
    """A learner, its network as Accelerate wrapped it, and its optimizer."""

    learner: Learner
    network: nn.Module
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator
    spec: TrainSpec

    @property
    def is_deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    @property
    def is_sharded(self) -> bool:
        """Whether weights are sharded over processes; then all processes must gather together."""
        sharded_types = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        return self.accelerator.distributed_type in sharded_types

    def update(self, step: int, micro_batches: Sequence[Batch], lr: float) -> float:
        """Make update number `step`, counted from 1; returns the mean loss before the update.

        Raises OutOfMemory, and TrainingDiverged at the first loss or gradient that is not finite,
        before it reaches the weights.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        value = self._add_gradients(step, micro_batches)
        if self.spec.sam is not None:
            self._move_gradients_to_worst(step, micro_batches, self.spec.sam)
        norm = self._clip_gradients()
        if norm is not None:  # DeepSpeed clips by itself
            require_finite("gradient", float(full_tensor(norm)), step)
        # Accelerate's wrapper handles scaled gradients and DeepSpeed; without them it only costs.
        optimizer = self.optimizer if self.is_sharded else self.optimizer.optimizer
        optimizer.step()
        optimizer.zero_grad()
        return value

    def _add_gradients(self, step: int, micro_batches: Sequence[Batch]) -> float:
        """Add the gradients of the mean loss over a step's batches; returns that loss."""
        accelerator = self.accelerator
        _seed(seed_at(self.spec.seed, "dropout", step, accelerator.process_index))
        terms = self._sum_over_processes(sum(map(self.learner.count_terms, micro_batches)))
        total = 0.0
        with _report_out_of_memory(step, self.spec, accelerator.num_processes):
            for number, micro_batch in enumerate(micro_batches, start=1):
                batch = {n: tensor.to(accelerator.device) for n, tensor in micro_batch.items()}
                is_last = number == len(micro_batches)
                with nullcontext() if is_last else accelerator.no_sync(self.network):
                    loss = self.learner.loss(self.network, batch)
                    # Processes average their gradients; the mean is over all terms of a step.
                    accelerator.backward(loss * (accelerator.num_processes / terms))
                    total += loss.item()  # synchronises; by now the device has all its work queued
        return require_finite("loss", self._sum_over_processes(total) / terms, step)

    def _move_gradients_to_worst(
        self, step: int, micro_batches: Sequence[Batch], radius: float
    ) -> None:
        """Replace the gradients by those at the worst point within a radius (SAM).

        That point is radius * g / |g| away, over all trained weights: arXiv 2010.01412, equation 2.
        The second pass has the rows and the dropout of the first.
        """
        moved = [p for _, p in self.trained_parameters() if p.grad is not None]
        gradients = [p.grad for p in moved if p.grad is not None]
        norm = require_finite("gradient", float(nn.utils.get_total_norm(gradients)), step)
        if norm == 0:
            return
        before = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for parameter, gradient in zip(moved, gradients, strict=True):
                parameter.add_(gradient, alpha=radius / norm)
        self.optimizer.optimizer.zero_grad()
        self._add_gradients(step, micro_batches)
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)

    def _clip_gradients(self) -> Tensor | None:
        """Clip the gradients; returns their norm before clipping."""
        if self.is_sharded:
            parameters = self.network.parameters()
            norm = self.accelerator.clip_grad_norm_(parameters, self.spec.clip)
            return cast("Tensor | None", norm)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(trained, self.spec.clip)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of the network by name, unsharded, on the CPU; call it in all processes."""
        if self.is_deepspeed:
            state = self.accelerator.get_state_dict(self.network) or {}
        else:
            state = self.accelerator.unwrap_model(self.network).state_dict()
        return {name: full_tensor(tensor).detach().cpu() for name, tensor in state.items()}

    def state(self) -> dict[str, Tensor]:
        """What training changes, copied to the CPU: trained weights and the optimizer's moments.

        It holds no generator state: random numbers of a step depend on seed and step alone. Empty
        with DeepSpeed, which keeps its own state.
        """
        if self.is_deepspeed:
            return {}
        tensors = {f"weight.{name}": parameter for name, parameter in self.trained_parameters()}
        for name, parameter in self.trained_parameters():
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = moment
        return {
            name: full_tensor(tensor).detach().cpu().clone() for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; raises CheckpointError if it is of another network."""
        expected = {f"weight.{name}" for name, _ in self.trained_parameters()}
        if expected != {name for name in state if name.startswith("weight.")}:
            raise CheckpointError(
                "The saved training state is of another network.", "Start over with --no-resume."
            )
        for name, parameter in self.trained_parameters():
            parameter.copy_(_placed_like(state[f"weight.{name}"], parameter))
            self.optimizer.state[parameter] = {
                key: _placed_like(state[f"{key}.{name}"], parameter)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in state
            }

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that require gradients, by their names in the network."""
        network = self.accelerator.unwrap_model(self.network)
        return ((name, p) for name, p in network.named_parameters() if p.requires_grad)

    def _sum_over_processes(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.tensor(value, device=self.accelerator.device, dtype=torch.float64)
        return float(self.accelerator.reduce(tensor))


def make_fit(learner: Learner, spec: TrainSpec, accelerator: Accelerator) -> Fit:
    """AdamW with decoupled weight decay over all parameters that require gradients.

    Raises UsageError if the batch does not split evenly over processes and micro-batches, or for
    settings that FSDP or DeepSpeed do not support.
    """
    _check_plugins(spec, accelerator)
    check_even_batches(spec, accelerator.num_processes)
    learner.network.train()  # evaluation restores this mode afterwards
    trained = [p for p in learner.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=spec.peak_lr, weight_decay=spec.weight_decay, fused=True
    )
    network, optimizer = accelerator.prepare(learner.network, optimizer)
    return Fit(learner, network, optimizer, accelerator, spec)


def _seed(seed: int) -> None:
    """torch.manual_seed, without its cost on a CPU, where it formats the stack three times."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def freeze_unused(learner: Learner, batch: Batch) -> None:
    """Freeze the parameters that the loss does not depend on, such as an unused pooler.

    Distributed training waits for the gradient of every parameter that requires one.
    """
    torch.autograd.backward(learner.loss(learner.network, batch))
    for parameter in learner.network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor, gathered if it is sharded over processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A saved tensor with a parameter's device and sharding; scalars are not sharded."""
    tensor = tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and tensor.dim() > 0:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def _check_plugins(spec: TrainSpec, accelerator: Accelerator) -> None:
    """Check FSDP and DeepSpeed settings, and fill in what DeepSpeed needs in advance."""
    kind = accelerator.distributed_type
    if spec.sam is not None and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UsageError(
            "Sharpness-aware steps need weights that are not sharded over processes.",
            "Leave --sam out, or train without FSDP and DeepSpeed.",
        )
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version < 2:
        raise UsageError(
            "The first version of FSDP hides the names of weights.",
            "Write `fsdp_version: 2` in Accelerate's configuration.",
        )
    if kind == DistributedType.DEEPSPEED:
        if spec.accumulate > 1:
            raise UsageError(
                "DeepSpeed has its own gradient accumulation.", "Leave --accumulate out."
            )
        if spec.anneal == "branch":
            raise UsageError(
                "DeepSpeed keeps its own state, so training cannot return to the trunk.",
                "Use --anneal trajectory or independent.",
            )
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = spec.batch // accelerator.num_processes
        config["gradient_clipping"] = spec.clip


@contextmanager
def _report_out_of_memory(step: int, spec: TrainSpec, processes: int) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if is_plain and not any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY_PHRASES):
            raise
        size = spec.batch // (spec.accumulate * processes)
        larger = [
            n for n in range(spec.accumulate + 1, spec.batch) if spec.batch % (n * processes) == 0
        ]
        smaller_batches = f"--accumulate {larger[0]}, " if larger else ""
        raise OutOfMemory(
            f"Out of memory at step {step} with {size} examples at a time.",
            f"Try {smaller_batches}--recompute or --precision bf16. That is a different run, so "
            "give it another --to. Steps saved before are kept.",
        ) from error


def require_finite(quantity: str, value: float, step: int) -> float:
    """The value; raises TrainingDiverged if it is infinite or NaN."""
    if not math.isfinite(value):
        raise divergence_error(f"The {quantity} is not finite at step {step}.")
    return value


def check_not_exploding(recent: Collection[float], first: float, step: int) -> None:
    """Raise TrainingDiverged if the last EXPLOSION_WINDOW losses are all far above the first."""
    if len(recent) == EXPLOSION_WINDOW and min(recent) > _EXPLOSION_FACTOR * max(first, 1.0):
        raise divergence_error(
            f"The loss exploded: above {min(recent):.3g} for {EXPLOSION_WINDOW} steps up to step "
            f"{step}, from {first:.3g} at the start."
        )


def divergence_error(sentence: str) -> TrainingDiverged:
    return TrainingDiverged(
        sentence, "Steps saved before are kept. Lower --lr, or use a longer warm-up."
    )
