"""The options of `hubmerge moerge`: a mixture of experts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hubmerge.specs.parsing import Spec
from hubmerge.specs.train import Precision, TrainSpec

RouterStart = Literal["arrow", "zero", "random", "centroid", "prompts"]
Schedule = Literal["constant", "cosine", "linear", "wsd"]
Sampling = Literal["uniform", "proportional", "temperature"]
_DEFAULT_TEMPERATURE = 2.0
_OPTIONS_WITHOUT_TRAINING = (
    "top_k",
    "router",
    "signed",
    "temperature",
    "train_steps",
    "extract_rank",
    "seed",
)


class MoeSpec(Spec):
    """A mixture of experts; the defaults are the paper's (arXiv 2506.14126, sections 2.3, 3.3).

    Every field is an option of `hubmerge moerge`; its description is the option's help.
    """

    top_k: int = Field(2, ge=1, le=256, description="Experts that each token uses.")
    router: RouterStart = Field(
        "arrow",
        description="Initial router: the experts' own directions (arrow), zeros (zero), random "
        "numbers (random), mean inputs of each task's rows (centroid) or of its class prompts "
        "(prompts).",
    )
    signed: bool | None = Field(
        None, description="Route by R x; unsigned by |R x|. [unsigned for arrow, else signed]"
    )
    temperature: float = Field(1.0, ge=1e-6, description="Divisor of the router's scores.")
    train_steps: int = Field(
        4000, ge=0, le=10_000_000, description="Optimizer steps; 0 trains nothing."
    )
    push_every: str | None = Field(
        None,
        description="Steps that become revisions: 2^k, a number N, or a list a,b,c. [the last]",
    )
    sampling: Sampling = Field(
        "uniform",
        description="How often each task is drawn: uniformly, in proportion to its rows, or to its "
        "rows to the power of 1 / --sampling-temperature.",
    )
    sampling_temperature: float | None = Field(
        None, ge=1, description=f"Temperature of sampling. [{_DEFAULT_TEMPERATURE:g}]"
    )
    balance: float = Field(
        0.0, ge=0, description="Weight of the load-balance loss (arXiv 2101.03961)."
    )

    extract_rank: int | None = Field(
        None, ge=1, le=4096, description="Extract a LoRA of this rank from full experts. [refuse]"
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

    batch: int = Field(128, ge=1, description="Examples per step, over all tasks and processes.")
    accumulate: int = Field(1, ge=1, description="Parts that the batch of a step is split into.")
    precision: Precision = Field("fp32", description="Arithmetic of the network.")
    recompute: bool = Field(False, description="Trade time for memory (gradient checkpointing).")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    augment: bool = Field(True, description="Random crops of 90 to 100 % of an image.")
    max_examples: int | None = Field(
        None, ge=1, description="Train on at most this many examples per task. [all]"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of order, crops and random starts.")

    @model_validator(mode="after")
    def _check_combinations(self) -> MoeSpec:
        if self.sampling_temperature is not None and self.sampling != "temperature":
            raise ValueError("`sampling_temperature` belongs to `sampling: temperature`")
        if self.router == "zero" and self.signed is False:
            raise ValueError("router: zero has no gradient through |R x|; leave it signed")
        if self.router == "zero" and self.top_k == 1 and not self.balance:
            raise ValueError("router: zero stays zero at `top_k` 1, a weight of 1; add `balance`")
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        unused = sorted(given - {*_OPTIONS_WITHOUT_TRAINING, *self._data_options_of_start})
        if not self.train_steps and unused:
            raise ValueError(f"without training `{unused[0]}` has no effect; leave it out")
        if self.warmup is not None and self.warmup_steps is not None:
            raise ValueError("give `warmup`, a share, or `warmup_steps`, not both")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not split into accumulate {self.accumulate}")
        return self

    @property
    def is_signed(self) -> bool:
        """Whether scores are R x instead of |R x|; arrow's directions have an arbitrary sign."""
        return self.router != "arrow" if self.signed is None else self.signed

    @property
    def _data_options_of_start(self) -> tuple[str, ...]:
        """The data options that matter without training: centroids are means over rows."""
        return ("max_examples",) if self.router == "centroid" else ()

    @property
    def sampling_power(self) -> float:
        """A task's share of the examples is proportional to its rows to this power, in [0, 1]."""
        powers = {"uniform": 0.0, "proportional": 1.0}
        return powers.get(self.sampling, 1 / (self.sampling_temperature or _DEFAULT_TEMPERATURE))

    @property
    def train_spec(self) -> TrainSpec:
        """The options for the training loop; its base, task and repository are placeholders."""
        options = self.model_dump(include=set(_TRAINING_OPTIONS), exclude_none=True)
        last = str(max(1, self.train_steps))
        options |= {"steps": max(1, self.train_steps), "push_every": self.push_every or last}
        return TrainSpec(base="base", task="mixture", to="hubmerge/mixture", **options)

    @property
    def settings(self) -> dict[str, object]:
        """The options that influence the mixture of experts, with defaults filled in."""
        irrelevant = {"push_every", "warmup", "evaluate_every"}
        options = self.model_dump(mode="json", exclude=irrelevant, exclude_none=True)
        options |= {"signed": self.is_signed}
        if not self.train_steps:
            names = (*_OPTIONS_WITHOUT_TRAINING, *self._data_options_of_start)
            return {name: options[name] for name in names if name in options}
        if self.sampling == "temperature":
            options["sampling_temperature"] = self.sampling_temperature or _DEFAULT_TEMPERATURE
        return options | {"warmup_steps": self.train_spec.warmup_length(self.train_steps)}


_TRAINING_OPTIONS = (
    "lr", "schedule", "warmup", "warmup_steps", "evaluate_every", "batch", "accumulate",
    "precision", "recompute", "weight_decay", "clip", "augment", "max_examples", "seed",
)  # fmt: skip
