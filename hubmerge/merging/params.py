"""The parameters of each merge method: defaults, ranges, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scale = Annotated[
    float, Field(allow_inf_nan=False, description="factor on the merged change, the paper's lambda")
]
Density = Annotated[
    float, Field(gt=0, le=1, description="fraction of each expert's changes that is kept")
]
Rescale = Annotated[
    Literal["expected", "l1", "none"],
    Field(
        description="make up for dropped changes by their chance (the paper), by L1 norm, or not"
    ),
]
NoRescale = Annotated[
    Literal["none", "l1"], Field(description="scale what is kept to the L1 norm of all changes")
]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="which changes are dropped")]
Normalize = Annotated[
    bool, Field(description="divide by the sum of the weights that count, instead of adding up")
]
Space = Annotated[
    Literal["weights", "changes"],
    Field(description="interpolate the experts' weights, or their changes to the base"),
]
Per = Annotated[
    Literal["tensor", "row"], Field(description="one angle for each tensor, or for each row")
]


class NoParams(BaseModel):
    """A method without parameters.

    `unrecorded` are parameters that came later, with what a merge means that records none.
    """

    unrecorded: ClassVar[Mapping[str, object]] = {}
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class TaskArithmeticParams(NoParams):
    """Parameters of task arithmetic."""

    scale: Scale = 1.0


class TiesParams(NoParams):
    """Parameters of TIES; the defaults are the authors', except `scope`, which is ours."""

    density: Density = 0.2
    scale: Scale = 1.0
    trim: Literal["model", "tensor"] = Field(
        "model", description="rank changes over the whole model, or within each tensor"
    )
    # The changes of a frozen half (CLIP's text tower) are all zeros: ranked with the rest, they
    # would leave the trained half nearly untrimmed.
    scope: Literal["changed", "all"] = Field(
        "changed",
        description="with trim=model, rank over the tensors that training changed, or all",
    )
    sign: Literal["unweighted", "weighted"] = Field(
        "unweighted", description="elect signs by the sum of changes, or of weighted changes"
    )


class MergekitTiesParams(NoParams):
    """Parameters of mergekit's variant of TIES."""

    density: Density = 0.2
    scale: Scale = 1.0
    normalize: Normalize = True
    rescale: NoRescale = "none"


class DropParams(NoParams):
    """Parameters of methods that drop changes at random."""

    density: Density = 0.2
    scale: Scale = 1.0
    rescale: Rescale = "expected"
    seed: Seed = 0


class DareParams(DropParams):
    """Parameters of DARE."""

    unrecorded: ClassVar[Mapping[str, object]] = {"masks": 1}
    masks: int = Field(
        2, ge=1, le=2, description="how random masks are made: 2, or 1 as where none is recorded"
    )


class DareTiesParams(DareParams):
    """Parameters of DARE with TIES's election of signs."""

    normalize: Normalize = False


class BreadcrumbsParams(NoParams):
    """Parameters of model breadcrumbs."""

    density: Density = 0.9
    gamma: float = Field(
        0.01, ge=0, lt=1, description="fraction of the largest changes that is left out"
    )
    scale: Scale = 1.0
    normalize: Normalize = False
    rescale: NoRescale = "none"


class DellaParams(DropParams):
    """Parameters of DELLA."""

    epsilon: float = Field(
        0.15, ge=0, lt=1, description="density - epsilon to density + epsilon is a change's chance"
    )
    normalize: Normalize = True

    @model_validator(mode="after")
    def _check_chances(self) -> Self:
        if self.density < 1 and not self.epsilon < self.density <= 1 - self.epsilon:
            raise ValueError(
                "density - epsilon must be above 0 and density + epsilon at most 1, and they are "
                f"{self.density - self.epsilon:g} and {self.density + self.epsilon:g}"
            )
        return self


class SceParams(NoParams):
    """Parameters of SCE."""

    density: float = Field(
        1.0, gt=0, le=1, description="fraction of the changes kept, those that vary most"
    )
    scale: Scale = 1.0


class SlerpParams(NoParams):
    """Parameters of slerp."""

    t: float = Field(0.5, ge=0, le=1, description="0 is the base, 1 the expert")


class NuslerpParams(NoParams):
    """Parameters of nuslerp."""

    space: Space = "weights"
    per: Per = "tensor"


class MultislerpParams(NoParams):
    """Parameters of multislerp."""

    space: Space = "weights"


class KarcherParams(NoParams):
    """Parameters of the Karcher mean."""

    iterations: int = Field(10, ge=1, le=1000, description="most steps towards the mean")
    tolerance: float = Field(1e-5, gt=0, le=1, description="a step this short is the last")


class ModelStockParams(NoParams):
    """Parameters of model stock."""

    per: Per = "tensor"


class PassthroughParams(NoParams):
    """Parameters of passthrough."""

    # Not `scale`, in which the merged change is linear.
    factor: float = Field(
        1.0, allow_inf_nan=False, description="factor on the weights of the expert themselves"
    )


class SpectralParams(NoParams):
    """Parameters of methods on singular values."""

    scale: Scale = 1.0


class KnotsParams(NoParams):
    """Parameters of KnOTS."""

    merge: Literal["ties", "sum", "mean"] = Field(
        "ties", description="how the aligned changes are merged"
    )
    density: Density = 0.2
    scale: Scale = 1.0


class CoreSpaceParams(NoParams):
    """Parameters of merges in core space."""

    merge: Literal["tsv", "iso_c", "ties", "sum"] = Field(
        "tsv", description="how the changes are merged in core space"
    )
    density: Density = 0.2
    scale: Scale = 1.0
