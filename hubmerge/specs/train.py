"""A training run as its YAML or its options say it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from hubmerge.refs import check_repo_id
from hubmerge.specs.parsing import Spec, sound

Tune = Literal["full", "lora", "dora", "ia3", "prefix"]
Anneal = Literal["trajectory", "independent", "branch"]
Schedule = Literal["constant", "cosine", "linear", "wsd", "plateau"]
EarlyStop = Literal["off", "plateau", "noise"]
Precision = Literal["fp32", "bf16"]
_TOGETHER = "`difficulty` and a `drop_hardest` above 0 go together"
_ADAPTER = "it belongs to `tune: lora` or another adapter"
_NEEDS = {
    "rank": _ADAPTER, "alpha": _ADAPTER, "dropout": _ADAPTER, "rslora": _ADAPTER,
    "cooldown": "it belongs to `schedule: wsd` or `anneal: branch`",
    "factor": "it belongs to `schedule: plateau` or `early_stop: plateau`",
    "min_lr": "it belongs to `early_stop: plateau`",
    "band": "it belongs to `early_stop: noise`",
    "patience": "it belongs to `schedule: plateau` or to `early_stop`",
    "difficulty": _TOGETHER, "drop_hardest": _TOGETHER,
}  # fmt: skip
_NOISE_PATIENCE = 20  # evaluations; docs/early-stopping.md compares others
_PLATEAU_WARMUP = 50  # steps, the paper's
_EVALUATE_EVERY = 5  # steps, where a schedule or a stopping rule watches the validation accuracy


class TrainSpec(Spec):
    """One training run of one expert; the defaults are the paper's for images (arXiv 2506.14126).

    Every field is an option of `hubmerge train`; its description is the option's help.
    """

    base: str = Field(description="Model to start from: owner/name or a folder.")
    task: str = Field(
        description="Name from `hubmerge tasks`, a task's YAML, a folder or file of examples, or "
        "hf://datasets/owner/name."
    )
    to: str = Field(description="Repository of the steps: owner/name.")
    steps: int = Field(2048, ge=1, le=10_000_000, description="Optimizer steps.")
    push_every: str = Field(
        "2^k", description="Steps that become revisions: 2^k, a number N, or a list a,b,c."
    )
    anneal: Anneal = Field(
        "trajectory",
        description="What a pushed step is: a snapshot of one run, a run of its own (independent), "
        "or a constant trunk with a short cool-down before it (branch).",
    )

    tune: Tune = Field(
        "full", description="Train all weights, or an adapter on every linear layer."
    )
    rank: int = Field(8, ge=1, le=4096, description="Rank of LoRA; virtual tokens of prefix.")
    alpha: float | None = Field(
        None, gt=0, description="LoRA's alpha. [32 sqrt(rank / 8), the paper's scaling]"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before LoRA's A.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank).")

    lr: float | None = Field(None, gt=0, description="Peak learning rate. [1e-5, adapters 1e-4]")
    schedule: Schedule | None = Field(
        None, description="Learning rate after warm-up. [cosine; branch and noise constant]"
    )
    warmup: float | None = Field(
        None, ge=0, le=1, description="Warm-up as a share of the run. [0.1; plateau 50 steps]"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="Warm-up in steps, instead of a share. [none]"
    )
    cooldown: float = Field(
        0.2, gt=0, le=1, description="Cool-down of wsd and branch, as a share of the steps to it."
    )
    early_stop: EarlyStop = Field(
        "off",
        description="End the run when its plateaus have used up the learning rate (the paper's), "
        "or when nothing beyond the noise of validation comes any more.",
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between evaluations. [pushed steps; 5 for plateau and noise]"
    )
    patience: int | None = Field(
        None, ge=1, description=f"Bad evaluations to a plateau. [3; noise {_NOISE_PATIENCE}]"
    )
    factor: float = Field(0.5, gt=0, lt=1, description="What a plateau leaves of the rate.")
    min_lr: float = Field(
        0.0625, ge=0, le=1, description="Share of the peak below which plateaus end the run."
    )
    band: float = Field(1.0, ge=0, description="Width of the noise, in standard errors.")

    batch: int = Field(128, ge=1, description="Examples a step, over all processes.")
    accumulate: int = Field(1, ge=1, description="Parts a step's batch is computed in.")
    precision: Precision = Field("fp32", description="Arithmetic of the network.")
    recompute: bool = Field(False, description="Trade time for memory (gradient checkpointing).")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    augment: bool = Field(True, description="Random crops of 90 to 100 % of an image.")
    bucket: bool = Field(False, description="Put texts of like length into one batch.")
    max_examples: int | None = Field(None, ge=1, description="Train on so many examples. [all]")
    difficulty: str | None = Field(
        None, description="Scores of the train split, from `hubmerge difficulty`. [none]"
    )
    drop_hardest: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Train without this share of rows, the hardest by those scores.",
    )
    stream: bool = Field(False, description="Read training data as they come, keeping none.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of order, crops and adapters.")

    @field_validator("to")
    @classmethod
    def _a_repository(cls, to: str) -> str:
        return sound(check_repo_id, to)

    @field_validator("push_every", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return ",".join(str(step) for step in value)
        return str(value) if isinstance(value, int) else value

    @field_validator("early_stop", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false

    @model_validator(mode="after")
    def _all_has_a_say(self) -> TrainSpec:
        """What would be ignored was meant to do something."""
        said = self.model_fields_set
        for name in _NEEDS:
            if name in said and getattr(self, name) is not None and name not in self.settings:
                raise ValueError(f"`{name}` has no effect here; {_NEEDS[name]}")
        if self.warmup is not None and self.warmup_steps is not None:
            raise ValueError("give `warmup`, a share, or `warmup_steps`, not both")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not split into accumulate {self.accumulate}")
        if self.anneal == "branch" and self.schedule not in (None, "constant"):
            raise ValueError("anneal: branch cools a constant trunk down; leave `schedule` out")
        if self.anneal != "trajectory" and self.early_stop != "off":
            raise ValueError(f"early_stop ends one run; anneal: {self.anneal} has several")
        if self.early_stop == "plateau" and self.schedule not in (None, "plateau"):
            raise ValueError("early_stop: plateau sets the schedule; leave `schedule` out")
        if self.stream and self.bucket:
            raise ValueError("bucket sorts texts by length, and a stream cannot be sorted")
        if self.stream and self.drops:
            raise ValueError("drop_hardest names rows by number, and a stream has no numbers")
        return self

    @property
    def drops(self) -> bool:
        """Whether the hardest rows are left out."""
        return self.difficulty is not None and self.drop_hardest > 0

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.lr or (1e-5 if self.tune == "full" else 1e-4)

    @property
    def scaling(self) -> float:
        """LoRA's alpha."""
        return self.alpha or float(math.floor(32 * math.sqrt(self.rank / 8)))

    @property
    def shape(self) -> Schedule:
        """The schedule of the learning rate."""
        if self.early_stop == "plateau":
            return "plateau"
        # A run that ends nobody knows when cannot be cooled down on the way.
        steady = self.anneal == "branch" or self.early_stop == "noise"
        return self.schedule or ("constant" if steady else "cosine")

    @property
    def cadence(self) -> int | None:
        """Steps between evaluations; None where only pushed steps are evaluated."""
        watched = self.shape == "plateau" or self.early_stop != "off"
        return self.evaluate_every or (_EVALUATE_EVERY if watched else None)

    @property
    def evaluations(self) -> int:
        """The patience of the plateau or of the stopping rule, in evaluations."""
        return self.patience or (_NOISE_PATIENCE if self.early_stop == "noise" else 3)

    @property
    def settings(self) -> dict[str, object]:
        """What had a say in the run, with whatever was left to its default filled in."""
        said = self.model_dump(mode="json", exclude={"base", "task", "to"}, exclude_none=True)
        said |= {"lr": self.peak, "schedule": self.shape}
        mute = {"warmup"}
        if self.tune in ("lora", "dora"):
            said["alpha"] = self.scaling
        else:
            mute |= {"alpha", "dropout", "rslora", *(() if self.tune == "prefix" else ("rank",))}
        if self.shape != "wsd" and self.anneal != "branch":
            mute.add("cooldown")
        if self.shape != "plateau":
            mute |= {"factor", "min_lr"}
        if self.early_stop != "noise":
            mute.add("band")
        if self.shape == "plateau" or self.early_stop == "noise":
            said |= {"patience": self.evaluations, "evaluate_every": self.cadence}
        else:
            mute.add("patience")
        if not self.drops:
            mute |= {"difficulty", "drop_hardest"}
        return {name: value for name, value in said.items() if name not in mute}

    def warmup_length(self, steps: int) -> int:
        """Warm-up of a run of that many steps, whichever way it was written."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup is None and self.shape == "plateau":
            return _PLATEAU_WARMUP
        return int((0.1 if self.warmup is None else self.warmup) * steps)
