"""What a user decides where experts and base differ, and the hints that name these options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

FULL_EXPERT_HINT = "Experts must be full fine-tunes of this base, or of one part of it."
TWICE_HINT = "Load it with transformers and save it again, which gives each tensor one name."
PART_HINT = (
    "Name its class in the architectures of its config.json, such as CLIPVisionModel: the class "
    "tells which part it is."
)
HEADS_HINT = (
    "Give --heads keep, which puts the head of each expert beside the merge, or --heads drop."
)
VOCABULARY_HINT = (
    "Give --vocabulary base or --vocabulary union: rows are then matched by token, as the "
    "tokenizers say."
)
TIED_HINT = (
    "Give --tied untie, which stores head and embedding apart, or --tied base, which leaves this "
    "head out."
)
BASE_TIE_HINT = (
    "Correct tie_word_embeddings in the config.json of the base, or use a base whose tensors agree "
    "with it."
)


@dataclass(frozen=True)
class MatchOptions:
    """What the user decided where experts and base differ; None where nothing was decided.

    `tied`: "untie" merges a head that the base ties to its embedding, and "base" leaves it out.
    `heads`: "keep" and "drop" leave out the heads of tasks, "keep" to be stored beside the merge;
    "merge" merges them. `vocabulary`: "base" merges the rows of the base's tokens, "union" those of
    all tokens.
    """

    tied: Literal["untie", "base"] | None = None
    heads: Literal["keep", "drop", "merge"] | None = None
    vocabulary: Literal["base", "union"] | None = None

    @property
    def chosen(self) -> dict[str, str]:
        """The decisions by the names of their options."""
        return {name: value for name, value in vars(self).items() if value is not None}


DEFAULT_OPTIONS = MatchOptions()


def split_options(params: Mapping[str, Any]) -> tuple[MatchOptions, dict[str, Any]]:
    """The decisions among the parameters of a manifest, and the other parameters."""
    names = [field.name for field in fields(MatchOptions)]
    chosen = {name: params[name] for name in names if name in params}
    return MatchOptions(**chosen), {k: v for k, v in params.items() if k not in names}
