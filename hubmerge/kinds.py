"""The kinds of models that hubmerge makes, and the kinds of folders that hold weights.

The strings appear in hubmerge.json, hubmerge.lock and on the command line.
"""

from __future__ import annotations

from typing import Literal

EXPERT: Literal["expert"] = "expert"
MERGE: Literal["merge"] = "merge"
MOE: Literal["moe"] = "moe"  # a mixture of LoRA experts; also its method in manifests and locks

ModelKind = Literal["expert", "merge", "moe"]
JobKind = Literal["expert", "moe"]  # what can be trained
CheckpointKind = Literal["full", "lora", "moe"]
