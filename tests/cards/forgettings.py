"""What a merge of two experts forgot, written by hand."""

from __future__ import annotations

from typing import Any

from hubmerge.forgetting import Example, Forgetting, Forgotten, OfClass, OfExpert
from tests.cards.worlds import merge

MODEL = merge().digest


def cats(**said: Any) -> OfExpert:
    """Of 40 known rows 10 are forgotten, 8 of them in the hardest three of ten bins."""
    known: dict[str, Any] = {
        "expert": "o/cats@step4",
        "task": "cats@1",
        "scored_by": ("o/cats@step2",),
        "before": 0.8,
        "after": 0.62,
        "learnt": 1,
        "bins": Forgotten((0, 0, 0, 0, 0, 1, 1, 2, 3, 3), (4,) * 10),
        "classes": (OfClass("tabby", 30, 4, "lynx"), OfClass("lynx", 10, 6, "tabby")),
        "examples": (Example(7, "lynx", "tabby", 0.9),),
    }
    return OfExpert(**{**known, **said})


def dogs(**said: Any) -> OfExpert:
    """Nothing is forgotten; rows are scored by the expert itself."""
    known: dict[str, Any] = {
        "expert": "o/dogs@step2",
        "task": "dogs@1",
        "scored_by": ("o/dogs@step2",),
        "before": 0.6,
        "after": 0.7,
        "learnt": 5,
        "bins": Forgotten((0,) * 10, (3,) * 10),
        "classes": (OfClass("pug", 30, 0),),
    }
    return OfExpert(**{**known, **said})


def forgetting(**said: Any) -> Forgetting:
    known: dict[str, Any] = {"model": MODEL, "split": "train", "experts": (cats(), dogs())}
    return Forgetting(**{**known, **said})
