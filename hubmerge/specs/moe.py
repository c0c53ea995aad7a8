"""A mixture of experts as the options of `hubmerge moerge` say it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hubmerge.specs.parsing import Spec
from hubmerge.specs.train import Precision, TrainSpec

Start = Literal["arrow", "zero", "random", "centroid", "prompts"]
Schedule = Literal["constant", "cosine", "linear", "wsd"]
Sampling = Literal["uniform", "proportional", "temperature"]
_TEMPERATURE = 2.0
_UNTRAINED = ("top_k", "router", "signed", "temperature", "train_steps", "extract_rank", "seed")


class MoeSpec(Spec):
    """One mixture; the defaults are the paper's (arXiv 2506.14126, sections 2.3 and 3.3).

    Every field is an option of `hubmerge moerge`; its description is the option's help.
    """

    top_k: int = Field(2, ge=1, le=256, description="Experts that each token uses.")
    router: Start = Field(
        "arrow",
        description="What the router starts from: the experts' own directions (arrow), nothing "
        "(zero), chance (random), mean inputs of each task's rows (centroid) or of its class "
        "prompts (prompts).",
    )
    signed: bool | None = Field(
        None, description="Route by R x; unsigned by |R x|. [unsigned for arrow, else signed]"
    )
    temperature: float = Field(1.0, ge=1e-6, description="What the router's scores are divided by.")
    train_steps: int = Field(
        4000, ge=0, le=10_000_000, description="Optimizer steps; 0 leaves it as it starts."
    )
    push_every: str | None = Field(
        None,
        description="Steps that become revisions: 2^k, a number N, or a list a,b,c. [the last]",
    )
    sampling: Sampling = Field(
        "uniform",
        description="How often each task comes: uniform, proportional to its rows, or to rows to "
        "the power of 1 / --sampling-temperature.",
    )
    sampling_temperature: float | None = Field(
        None, ge=1, description=f"Temperature of sampling. [{_TEMPERATURE:g}]"
    )
    balance: float = Field(
        0.0, ge=0, description="Weight of the load-balance loss (arXiv 2101.03961)."
    )

    extract_rank: int | None = Field(
        None, ge=1, le=4096, description="Make a LoRA of this rank of each full expert. [refuse]"
    )

    lr: float = Field(1e-5, gt=0, description="Peak learning rate.")
    schedule: Schedule = Field("cosine", description="Learning rate after warm-up.")
    warmup: float | None = Field(
        None, ge=0, le=1, description="Warm-up as a share of the run. [0.1]"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="Warm-up in steps, instead of a share. [none]"
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between evaluations. [pushed steps]"
    )

    batch: int = Field(128, ge=1, description="Examples a step, over all tasks and processes.")
    accumulate: int = Field(1, ge=1, description="Parts a step's batch is computed in.")
    precision: Precision = Field("fp32", description="Arithmetic of the network.")
    recompute: bool = Field(False, description="Trade time for memory (gradient checkpointing).")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    augment: bool = Field(True, description="Random crops of 90 to 100 % of an image.")
    max_examples: int | None = Field(
        None, ge=1, description="Train on so many examples a task. [all]"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of order, crops and random starts.")

    @model_validator(mode="after")
    def _consistent(self) -> MoeSpec:
        if self.sampling_temperature is not None and self.sampling != "temperature":
            raise ValueError("`sampling_temperature` belongs to `sampling: temperature`")
        if self.router == "zero" and self.signed is False:
            raise ValueError("router: zero has no gradient through |R x|; leave it signed")
        if self.router == "zero" and self.top_k == 1 and not self.balance:
            raise ValueError("router: zero stays zero at `top_k` 1, a weight of 1; add `balance`")
        said = {name for name in self.model_fields_set if getattr(self, name) is not None}
        idle = sorted(said - {*_UNTRAINED, *self._rows_of_the_start})
        if not self.train_steps and idle:
            raise ValueError(f"without training `{idle[0]}` has no effect; leave it out")
        if self.warmup is not None and self.warmup_steps is not None:
            raise ValueError("give `warmup`, a share, or `warmup_steps`, not both")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not split into accumulate {self.accumulate}")
        return self

    @property
    def is_signed(self) -> bool:
        """Arrow's directions have no sign of their own: an SVD's is arbitrary."""
        return self.router != "arrow" if self.signed is None else self.signed

    @property
    def _rows_of_the_start(self) -> tuple[str, ...]:
        """Centroids are means over rows: without training nothing else of the data has a say."""
        return ("max_examples",) if self.router == "centroid" else ()

    @property
    def power(self) -> float:
        """A task's share of the examples goes with its rows to this power, in [0, 1]."""
        powers = {"uniform": 0.0, "proportional": 1.0}
        return powers.get(self.sampling, 1 / (self.sampling_temperature or _TEMPERATURE))

    @property
    def training(self) -> TrainSpec:
        """The run as the training loop takes it; base, task and repository have no say there."""
        said = self.model_dump(include=set(_SHARED), exclude_none=True)
        last = str(max(1, self.train_steps))
        said |= {"steps": max(1, self.train_steps), "push_every": self.push_every or last}
        return TrainSpec(base="base", task="mixture", to="hubmerge/mixture", **said)

    @property
    def settings(self) -> dict[str, object]:
        """What had a say in the mixture, with whatever was left to its default filled in."""
        mute = {"push_every", "warmup", "evaluate_every"}
        said = self.model_dump(mode="json", exclude=mute, exclude_none=True)
        said |= {"signed": self.is_signed}
        if not self.train_steps:
            names = (*_UNTRAINED, *self._rows_of_the_start)
            return {name: said[name] for name in names if name in said}
        if self.sampling == "temperature":
            said["sampling_temperature"] = self.sampling_temperature or _TEMPERATURE
        return said | {"warmup_steps": self.training.warmup_length(self.train_steps)}


_SHARED = (
    "lr", "schedule", "warmup", "warmup_steps", "evaluate_every", "batch", "accumulate",
    "precision", "recompute", "weight_decay", "clip", "augment", "max_examples", "seed",
)  # fmt: skip
