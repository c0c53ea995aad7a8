"""Why an adapted module cannot be merged: the kinds of problems, each with a hint."""

from __future__ import annotations

from hubmerge.weights.adapter_config_fields import MERGE_WITH_PEFT_HINT

MATCHING_BASE_HINT = (
    "Give the base that it was trained on, under the tensor names it had then, with --base."
)
FETCH_AGAIN_HINT = "Fetch or save the adapter again."

# The end of a sentence, with {} for the tensors that it is true of, and a hint.
MisfitKind = tuple[str, str]
INCOMPLETE: MisfitKind = "lacks a part of its change to {}", FETCH_AGAIN_HINT
UNEXPECTED_PARTS: MisfitKind = (
    "has parts for {} that its configuration does not mention",
    FETCH_AGAIN_HINT,
)
WRONG_RANK: MisfitKind = "has a rank in {} that differs from its configuration", FETCH_AGAIN_HINT
NOT_A_MATRIX: MisfitKind = (
    "changes {}, which is neither a matrix nor a convolution with a plain LoRA",
    MERGE_WITH_PEFT_HINT,
)
GROUPED: MisfitKind = (
    "changes the grouped convolution {}, which no change of its weights can do",
    "Train it again without this layer in its target_modules.",
)
NOT_FLOAT: MisfitKind = "changes {}, where a tensor is not floating-point", MERGE_WITH_PEFT_HINT
AMBIGUOUS_ORIENTATION: MisfitKind = (
    "does not show whether inputs or outputs come first in {}",
    MERGE_WITH_PEFT_HINT,
)
CHANGED_TWICE: MisfitKind = "changes {} twice", MERGE_WITH_PEFT_HINT
NEWER_PEFT: MisfitKind = (
    "changes {} with a peft newer than 0.21.2, which may count the out_proj of attention once",
    MERGE_WITH_PEFT_HINT,
)
WRONG_SHAPE: MisfitKind = "does not fit the base in {}", MATCHING_BASE_HINT


class MisfitError(Exception):
    """Why one module cannot be merged; `kind` groups the modules with the same problem."""

    def __init__(self, kind: MisfitKind) -> None:
        super().__init__(kind[0])
        self.kind = kind
