"""mergekit's merge methods as its configurations know them: parameters, defaults, and inputs.

Verified with mergekit 0.1.5. A parameter of the inputs may differ between models and is looked up
in those of a model, of its slice, and of all; a shared one is the same for all models, and what a
model says about it is ignored. The defaults are mergekit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What a parameter does not have if it must be given.
REQUIRED = None
# These change how mergekit computes, not what.
WITHOUT_EFFECT = ("int8_mask",)


@dataclass(frozen=True)
class MergekitParameter:
    """A number or a flag; `default` is REQUIRED if there is none. An `inert` one does nothing."""

    default: float | bool | None
    kind: Literal["number", "flag"] = "number"
    inert: bool = False


@dataclass(frozen=True)
class MergekitMethod:
    """A method of mergekit, and `ours` that has its formula.

    With a `base` "required" or "optional", base_model is no input of its own; with "ignored", it is
    one more input.
    """

    ours: str
    base: Literal["required", "optional", "ignored"] = "required"
    inputs: Mapping[str, MergekitParameter] = field(default_factory=dict)
    shared: Mapping[str, MergekitParameter] = field(default_factory=dict)


_WEIGHT = MergekitParameter(REQUIRED)
_TRUE, _FALSE = MergekitParameter(True, "flag"), MergekitParameter(False, "flag")


def _of_changes(
    ours: str, normalize: bool, rescale: bool, sparse: bool = True, **inputs: float
) -> MergekitMethod:
    """A method of mergekit's family of generalized task arithmetic."""
    return MergekitMethod(
        ours,
        inputs={
            "weight": _WEIGHT,
            "density": MergekitParameter(1.0, inert=not sparse),
            **{name: MergekitParameter(default) for name, default in inputs.items()},
        },
        shared={
            "normalize": MergekitParameter(normalize, "flag"),
            "rescale": MergekitParameter(rescale, "flag", inert=not sparse),
            "lambda": MergekitParameter(1.0),
        },
    )


MERGEKIT_METHODS: Mapping[str, MergekitMethod] = {
    "linear": MergekitMethod("average", "ignored", {"weight": _WEIGHT}, {"normalize": _TRUE}),
    "slerp": MergekitMethod("slerp", shared={"t": MergekitParameter(REQUIRED)}),
    "nuslerp": MergekitMethod(
        "nuslerp",
        "optional",
        {"weight": _WEIGHT},
        {"nuslerp_row_wise": _FALSE, "nuslerp_flatten": _TRUE},
    ),
    "multislerp": MergekitMethod(
        "multislerp",
        "optional",
        {"weight": _WEIGHT},
        {"normalize_weights": _TRUE, "eps": MergekitParameter(1e-8)},
    ),
    "karcher": MergekitMethod(
        "karcher",
        "ignored",
        shared={"max_iter": MergekitParameter(10), "tol": MergekitParameter(1e-5)},
    ),
    "model_stock": MergekitMethod("model_stock", shared={"filter_wise": _FALSE}),
    "sce": MergekitMethod("sce", shared={"select_topk": MergekitParameter(1.0)}),
    "passthrough": MergekitMethod("passthrough", "ignored", {"scale": MergekitParameter(1.0)}),
    "task_arithmetic": _of_changes("task_arithmetic", False, False, sparse=False),
    "ties": _of_changes("ties_mergekit", True, False),
    "dare_linear": _of_changes("dare", False, True),
    "dare_ties": _of_changes("dare_ties", False, True),
    "breadcrumbs": _of_changes("breadcrumbs", False, False, gamma=0.01),
    "breadcrumbs_ties": _of_changes("breadcrumbs_ties", False, False, gamma=0.01),
    "della": _of_changes("della", True, True, epsilon=0.15),
    "della_linear": _of_changes("della_linear", False, True, epsilon=0.15),
}

# Methods of mergekit that hubmerge does not have, with the nearest that it has.
NOT_OFFERED: Mapping[str, str] = {
    "arcee_fusion": "breadcrumbs",
    "nearswap": "slerp",
    "ram": "task_arithmetic",
    "ramplus_tl": "task_arithmetic",
    "core_space": "task_arithmetic",
    "cabs": "ties",
    "lrp": "ties",
    "zipit": "linear",
    "ranked_ties": "ties",
    "uniform": "linear",
}

PARAMETERS = frozenset(
    {
        *WITHOUT_EFFECT,
        *(
            name
            for method in MERGEKIT_METHODS.values()
            for name in (*method.inputs, *method.shared)
        ),
    }
)
