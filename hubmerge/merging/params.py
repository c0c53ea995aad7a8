"""The parameters of each merge method: defaults, ranges, and what they mean."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Scale = Annotated[
    float, Field(allow_inf_nan=False, description="factor on the merged change, the paper's lambda")
]
Density = Annotated[
    float, Field(gt=0, le=1, description="fraction of each expert's changes that is kept")
]


class NoParams(BaseModel):
    """A method without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class DareParams(NoParams):
    """Parameters of DARE."""

    density: Density = 0.2
    scale: Scale = 1.0
    rescale: Literal["expected", "l1"] = Field(
        "expected",
        description="make up for dropped changes by 1/density (the paper), or by their L1 norm",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="which changes are dropped")
