"""The options of `hubmerge train`, or its YAML: a training run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hubmerge.refs import check_repo_id
from hubmerge.specs.parsing import Spec, as_value_error

Tune = Literal["full", "lora", "dora", "ia3", "prefix"]
Anneal = Literal["trajectory", "independent", "branch"]
Schedule = Literal["constant", "cosine", "linear", "wsd", "plateau"]
EarlyStop = Literal["off", "plateau", "noise"]
Precision = Literal["fp32", "bf16"]
LoadIn = Literal["4bit"]
_DIFFICULTY_HINT = "`difficulty` and a `drop_hardest` above 0 go together"
_ADAPTER_HINT = "it belongs to `tune: lora` or another adapter"
_LORA_HINT = "it belongs to `tune: lora` or `tune: dora`"
_AVERAGE = re.compile(r"ema:(?P<decay>0\.\d{1,9})|last:(?P<count>[1-9]\d{0,3})")
_UNUSED_HINTS = {
    "rank": _ADAPTER_HINT, "alpha": _ADAPTER_HINT,
    "dropout": _ADAPTER_HINT, "rslora": _ADAPTER_HINT,
    "target_modules": _LORA_HINT, "modules_to_save": _LORA_HINT, "load_in": _ADAPTER_HINT,
    "cooldown": "it belongs to `schedule: wsd` or `anneal: branch`",
    "factor": "it belongs to `schedule: plateau` or `early_stop: plateau`",
    "min_lr": "it belongs to `early_stop: plateau`",
    "band": "it belongs to `early_stop: noise`",
    "patience": "it belongs to `schedule: plateau` or to `early_stop`",
    "difficulty": _DIFFICULTY_HINT, "drop_hardest": _DIFFICULTY_HINT,
}  # fmt: skip
_NOISE_PATIENCE = 20  # evaluations; docs/early-stopping.md compares others
_PLATEAU_WARMUP = 50  # steps, the paper's
_EVALUATE_EVERY = 5  # steps, if a schedule or a stopping rule uses the validation accuracy


class TrainSpec(Spec):
    """One training run of one expert; the defaults are the paper's for images (arXiv 2506.14126).

    Every field is an option of `hubmerge train`; its description is the option's help.
    """

    base: str = Field(description="Base model: owner/name or a folder.")
    task: str = Field(
        description="Name from `hubmerge tasks`, a task's YAML, a folder or file of examples, or "
        "hf://datasets/owner/name."
    )
    to: str = Field(description="Repository for the steps: owner/name.")
    start_from: str | None = Field(
        None,
        description="Step of an expert to continue from: owner/name@step64. What its manifest "
        "records, base and task too, is used for options that are not given. [none]",
    )
    steps: int = Field(2048, ge=1, le=10_000_000, description="Optimizer steps.")
    push_every: str = Field(
        "2^k", description="Steps that become revisions: 2^k, a number N, or a list a,b,c."
    )
    anneal: Anneal = Field(
        "trajectory",
        description="What a pushed step is: a snapshot of one run (trajectory), the end of a "
        "separate run (independent), or a cool-down from a constant-rate trunk (branch).",
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
    target_modules: str | None = Field(
        None, description="Layers that LoRA changes: q_proj,v_proj. [every linear layer]"
    )
    modules_to_save: str | None = Field(
        None, description="Modules that are trained whole beside LoRA: lm_head. [none]"
    )
    load_in: LoadIn | None = Field(
        None, description="Train the adapter on a base quantised to 4 bits; needs CUDA. [no]"
    )

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
        description="End the run when plateaus have reduced the learning rate to --min-lr (as in "
        "the paper), or when validation accuracy stops improving beyond its noise.",
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between evaluations. [pushed steps; 5 for plateau and noise]"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description=f"Evaluations without improvement. [3; noise {_NOISE_PATIENCE}]",
    )
    factor: float = Field(
        0.5, gt=0, lt=1, description="Factor of the learning rate at each plateau."
    )
    min_lr: float = Field(
        0.0625, ge=0, le=1, description="Share of the peak rate below which plateaus end the run."
    )
    band: float = Field(1.0, ge=0, description="Width of the noise band, in standard errors.")

    batch: int = Field(128, ge=1, description="Examples per step, over all processes.")
    accumulate: int = Field(1, ge=1, description="Parts that the batch of a step is split into.")
    precision: Precision = Field("fp32", description="Arithmetic of the network.")
    recompute: bool = Field(False, description="Trade time for memory (gradient checkpointing).")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    sam: float | None = Field(
        None,
        gt=0,
        description="Radius of sharpness-aware steps, 0.05 for example: two passes a step. [none]",
    )
    average: str | None = Field(
        None,
        description="Push means of weights along the run: ema:0.999, or last:4 of the last 4 "
        "evaluations. [none]",
    )
    augment: bool = Field(True, description="Random crops of 90 to 100 % of an image.")
    bucket: bool = Field(False, description="Put texts of similar length into one batch.")
    pack: bool = Field(
        False, description="Pack short rows of prompts, conversations and texts into sequences."
    )
    max_examples: int | None = Field(
        None, ge=1, description="Train on at most this many examples. [all]"
    )
    difficulty: str | None = Field(
        None, description="Scores of the train split, from `hubmerge difficulty`. [none]"
    )
    drop_hardest: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Train without this share of rows, the hardest by the scores of --difficulty.",
    )
    stream: bool = Field(False, description="Stream training data instead of storing them.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of order, crops and adapters.")

    @field_validator("to")
    @classmethod
    def _check_repository(cls, to: str) -> str:
        return as_value_error(check_repo_id, to)

    @field_validator("push_every", mode="before")
    @classmethod
    def _push_every_as_text(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return ",".join(str(step) for step in value)
        return str(value) if isinstance(value, int) else value

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _names_as_text(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            return value
        return ",".join(sorted({name.strip() for name in value} - {""})) or None

    @field_validator("average")
    @classmethod
    def _check_average(cls, value: str | None) -> str | None:
        match = _AVERAGE.fullmatch(value) if value is not None else None
        if value is not None and (match is None or float(match["decay"] or 0.5) == 0):
            raise ValueError("write ema:0.999, the decay, or last:4, the number of evaluations")
        return value

    @field_validator("early_stop", mode="before")
    @classmethod
    def _parse_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false

    @model_validator(mode="after")
    def _reject_unused_options(self) -> TrainSpec:
        """Refuse options that would be ignored: the user expects an effect."""
        given = self.model_fields_set
        for name in _UNUSED_HINTS:
            if name in given and getattr(self, name) is not None and name not in self.settings:
                raise ValueError(f"`{name}` has no effect here; {_UNUSED_HINTS[name]}")
        if self.warmup is not None and self.warmup_steps is not None:
            raise ValueError("give `warmup`, a share, or `warmup_steps`, not both")
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainSpec:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not split into accumulate {self.accumulate}")
        if self.anneal == "branch" and self.schedule not in (None, "constant"):
            raise ValueError("anneal: branch has a constant trunk; leave `schedule` out")
        if self.anneal != "trajectory" and self.early_stop != "off":
            raise ValueError(f"early_stop ends one run, but anneal: {self.anneal} has several")
        if self.early_stop == "plateau" and self.schedule not in (None, "plateau"):
            raise ValueError("early_stop: plateau sets the schedule; leave `schedule` out")
        if self.stream and self.bucket:
            raise ValueError("bucket sorts texts by length, but a stream cannot be sorted")
        if self.pack and self.tune == "prefix":
            raise ValueError("pack keeps rows apart by positions, which tune: prefix ignores")
        if self.average is not None and self.anneal == "branch":
            raise ValueError("a mean stands in for the cool-down of anneal: branch")
        if self.start_from is not None and self.anneal != "trajectory":
            raise ValueError("start_from continues one run: anneal: trajectory")
        if self.stream and self.drops_rows:
            raise ValueError("drop_hardest needs row numbers, but a stream has none")
        return self

    @property
    def drops_rows(self) -> bool:
        """Whether the hardest rows are left out."""
        return self.difficulty is not None and self.drop_hardest > 0

    @property
    def peak_lr(self) -> float:
        """The peak learning rate."""
        return self.lr or (1e-5 if self.tune == "full" else 1e-4)

    @property
    def lora_alpha(self) -> float:
        """LoRA's alpha."""
        return self.alpha or float(math.floor(32 * math.sqrt(self.rank / 8)))

    @property
    def lr_schedule(self) -> Schedule:
        """The schedule of the learning rate."""
        if self.early_stop == "plateau":
            return "plateau"
        # A run with an unknown end cannot be annealed towards it.
        is_constant = self.anneal == "branch" or self.early_stop == "noise"
        return self.schedule or ("constant" if is_constant else "cosine")

    @property
    def evaluation_interval(self) -> int | None:
        """Steps between evaluations; None if only pushed steps are evaluated."""
        uses_accuracy = self.lr_schedule == "plateau" or self.early_stop != "off"
        return self.evaluate_every or (_EVALUATE_EVERY if uses_accuracy else None)

    @property
    def stopping_patience(self) -> int:
        """The patience of the plateau or of the stopping rule, in evaluations."""
        return self.patience or (_NOISE_PATIENCE if self.early_stop == "noise" else 3)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The layers that LoRA changes; empty for every linear layer."""
        return tuple(self.target_modules.split(",")) if self.target_modules else ()

    @property
    def saved_names(self) -> tuple[str, ...]:
        """The modules that are trained whole beside LoRA."""
        return tuple(self.modules_to_save.split(",")) if self.modules_to_save else ()

    @property
    def average_decay(self) -> float | None:
        """The decay of an exponential mean of the weights."""
        match = _AVERAGE.fullmatch(self.average or "")
        return float(match["decay"]) if match and match["decay"] else None

    @property
    def averaged_evaluations(self) -> int | None:
        """How many evaluations the mean of the weights is over."""
        match = _AVERAGE.fullmatch(self.average or "")
        return int(match["count"]) if match and match["count"] else None

    @property
    def settings(self) -> dict[str, object]:
        """The options that influence the run, with defaults filled in."""
        options = self.model_dump(mode="json", exclude={"base", "task", "to"}, exclude_none=True)
        options |= {"lr": self.peak_lr, "schedule": self.lr_schedule}
        unused = {"warmup"}
        if self.tune in ("lora", "dora"):
            options["alpha"] = self.lora_alpha
        else:
            unused |= {"alpha", "dropout", "rslora", "target_modules", "modules_to_save"}
            unused |= {*(() if self.tune == "prefix" else ("rank",))}
            unused |= {"load_in"} if self.tune == "full" else set()
        if self.lr_schedule != "wsd" and self.anneal != "branch":
            unused.add("cooldown")
        if self.lr_schedule != "plateau":
            unused |= {"factor", "min_lr"}
        if self.early_stop != "noise":
            unused.add("band")
        if self.lr_schedule == "plateau" or self.early_stop == "noise":
            options |= {
                "patience": self.stopping_patience,
                "evaluate_every": self.evaluation_interval,
            }
        else:
            unused.add("patience")
        if not self.drops_rows:
            unused |= {"difficulty", "drop_hardest"}
        if not self.pack:  # runs of earlier versions have no such setting
            unused.add("pack")
        return {name: value for name, value in options.items() if name not in unused}

    def warmup_length(self, steps: int) -> int:
        """The warm-up steps of a run with so many steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup is None and self.lr_schedule == "plateau":
            return _PLATEAU_WARMUP
        return int((0.1 if self.warmup is None else self.warmup) * steps)


def unused_options(values: Mapping[str, Any]) -> set[str]:
    """The options among these values that have no effect together with the others.

    The values need not be valid: what is wrong with them is found when a spec is made of them.
    """
    fields = {name: value for name, value in values.items() if name in TrainSpec.model_fields}
    settings = TrainSpec.model_construct(**fields).settings
    return {name for name in _UNUSED_HINTS if name in fields and name not in settings}
