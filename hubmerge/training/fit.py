"""A network in training: one update at a time, and its whole state at any of them."""

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
from hubmerge.training.schedule import check_even

# What torch says of memory in a plain RuntimeError; an "illegal memory access" is another matter.
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
EXPLOSIVE, _EXPLODED = 10, 4.0  # so many updates in a row, each so many times the first loss


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
    def is_spread(self) -> bool:
        """Whether weights are spread over processes, so that all must help to gather them."""
        spread = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        return self.accelerator.distributed_type in spread

    def update(self, step: int, micros: Sequence[Batch], lr: float) -> float:
        """Make update number `step`, counted from 1; returns the mean loss before it.

        Raises TrainingDiverged at the first loss or gradient that is not a number, before it
        reaches the weights, and OutOfMemory.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        accelerator = self.accelerator
        _seed(seed_at(self.spec.seed, "dropout", step, accelerator.process_index))
        terms = self._everywhere(sum(map(self.learner.count, micros)))
        total = 0.0
        with _enough_memory(step, self.spec, accelerator.num_processes):
            for number, micro in enumerate(micros, start=1):
                batch = {name: tensor.to(accelerator.device) for name, tensor in micro.items()}
                with nullcontext() if number == len(micros) else accelerator.no_sync(self.network):
                    loss = self.learner.loss(self.network, batch)
                    # Processes average their gradients; the mean is over all terms of a step.
                    accelerator.backward(loss * (accelerator.num_processes / terms))
                    total += loss.item()  # waits for the device, which has all its work by now
        value = finite("loss", self._everywhere(total) / terms, step)
        norm = self._clipped()
        if norm is not None:  # DeepSpeed clips by itself
            finite("gradient", float(whole(norm)), step)
        # Accelerate's own step is for scaled gradients and DeepSpeed; it takes longer to find out.
        optimizer = self.optimizer if self.is_spread else self.optimizer.optimizer
        optimizer.step()
        optimizer.zero_grad()
        return value

    def _clipped(self) -> Tensor | None:
        """Clip the gradients; returns their norm before."""
        if self.is_spread:
            parameters = self.network.parameters()
            norm = self.accelerator.clip_grad_norm_(parameters, self.spec.clip)
            return cast("Tensor | None", norm)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(trained, self.spec.clip)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of the network by name, whole, on the CPU; all processes must ask."""
        if self.is_deepspeed:
            state = self.accelerator.get_state_dict(self.network) or {}
        else:
            state = self.accelerator.unwrap_model(self.network).state_dict()
        return {name: whole(tensor).detach().cpu() for name, tensor in state.items()}

    def state(self) -> dict[str, Tensor]:
        """What training changes, copied to the CPU: trained weights and the optimizer's moments.

        Nothing random is in it: what is drawn at a step hangs on seed and step alone. Empty under
        DeepSpeed, which keeps its own.
        """
        if self.is_deepspeed:
            return {}
        found = {f"weight.{name}": parameter for name, parameter in self._trained()}
        for name, parameter in self._trained():
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                found[f"{key}.{name}"] = moment
        return {name: whole(tensor).detach().cpu().clone() for name, tensor in found.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state; raises CheckpointError if it is of another network."""
        expected = {f"weight.{name}" for name, _ in self._trained()}
        if expected != {name for name in state if name.startswith("weight.")}:
            raise CheckpointError(
                "The saved state is of another network.", "Start over with --no-resume."
            )
        for name, parameter in self._trained():
            parameter.copy_(_like(state[f"weight.{name}"], parameter))
            self.optimizer.state[parameter] = {
                key: _like(state[f"{key}.{name}"], parameter)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in state
            }

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        network = self.accelerator.unwrap_model(self.network)
        return ((name, p) for name, p in network.named_parameters() if p.requires_grad)

    def _everywhere(self, value: float) -> float:
        """The sum over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        told = torch.tensor(value, device=self.accelerator.device, dtype=torch.float64)
        return float(self.accelerator.reduce(told))


def make_fit(learner: Learner, spec: TrainSpec, accelerator: Accelerator) -> Fit:
    """AdamW with decoupled weight decay over whatever requires gradients.

    Raises UsageError for a share of work that does not come out even.
    """
    _check_plugins(spec, accelerator)
    check_even(spec, accelerator.num_processes)
    learner.network.train()  # which evaluation goes back to
    trained = [p for p in learner.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.peak, weight_decay=spec.weight_decay, fused=True)
    network, optimizer = accelerator.prepare(learner.network, optimizer)
    return Fit(learner, network, optimizer, accelerator, spec)


def _seed(seed: int) -> None:
    """As torch.manual_seed, which formats the stack three times where there is no accelerator."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def freeze_idle(learner: Learner, batch: Batch) -> None:
    """Freeze what the loss does not depend on, such as an unused pooler.

    Several processes wait for the gradient of every parameter that requires one.
    """
    torch.autograd.backward(learner.loss(learner.network, batch))
    for parameter in learner.network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over processes, in one piece."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A saved tensor where and how a parameter lies; a count of steps is nowhere spread."""
    tensor = tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and tensor.dim() > 0:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def _check_plugins(spec: TrainSpec, accelerator: Accelerator) -> None:
    """What Accelerate may have been launched with, and what each needs to be told beforehand."""
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version < 2:
        raise UsageError(
            "The first version of FSDP hides the names of weights.",
            "Write `fsdp_version: 2` in Accelerate's configuration.",
        )
    if kind == DistributedType.DEEPSPEED:
        if spec.accumulate > 1:
            raise UsageError("DeepSpeed accumulates by its own rules.", "Leave --accumulate out.")
        if spec.anneal == "branch":
            raise UsageError(
                "DeepSpeed keeps its own state, so a trunk cannot be gone back to.",
                "Use --anneal trajectory or independent.",
            )
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = spec.batch // accelerator.num_processes
        config["gradient_clipping"] = spec.clip


@contextmanager
def _enough_memory(step: int, spec: TrainSpec, processes: int) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if plain and not any(words in str(error).lower() for words in _NO_MEMORY):
            raise
        size = spec.batch // (spec.accumulate * processes)
        parts = [
            n for n in range(spec.accumulate + 1, spec.batch) if spec.batch % (n * processes) == 0
        ]
        smaller = f"--accumulate {parts[0]}, " if parts else ""
        raise OutOfMemory(
            f"Out of memory at step {step} with {size} examples at a time.",
            f"Try {smaller}--recompute or --precision bf16: that is another run, so give it "
            "another --to. Steps saved before are kept.",
        ) from error


def finite(what: str, value: float, step: int) -> float:
    """The value, or TrainingDiverged."""
    if not math.isfinite(value):
        raise diverged(f"The {what} is no longer a number at step {step}.")
    return value


def check_bounded(recent: Collection[float], first: float, step: int) -> None:
    """Raise TrainingDiverged where the last EXPLOSIVE losses are all far above the first."""
    if len(recent) == EXPLOSIVE and min(recent) > _EXPLODED * max(first, 1.0):
        raise diverged(
            f"The loss explodes: above {min(recent):.3g} for {EXPLOSIVE} steps by step {step}, "
            f"after {first:.3g} at the start."
        )


def diverged(sentence: str) -> TrainingDiverged:
    return TrainingDiverged(
        sentence, "Every step saved before it is kept. Lower --lr, or warm up for longer."
    )
