"""Builders of the forgetting of a merge of two experts, written by hand."""

from __future__ import annotations

from typing import Any

from hubmerge.forgetting import (
    ClassForgetting,
    ExpertForgetting,
    Forgetting,
    ForgottenByBin,
    ForgottenRow,
)
from tests.cards.builders import merge

MODEL = merge().digest


def cats_forgetting(**changes: Any) -> ExpertForgetting:
    """Of 40 known rows 10 are forgotten, 8 of these in the hardest three of ten bins."""
    fields: dict[str, Any] = {
        "expert": "o/cats@step4",
        "task": "cats@1",
        "scored_by": ("o/cats@step2",),
        "before": 0.8,
        "after": 0.62,
        "learnt": 1,
        "bins": ForgottenByBin((0, 0, 0, 0, 0, 1, 1, 2, 3, 3), (4,) * 10),
        "classes": (
            ClassForgetting("tabby", 30, 4, "lynx"),
            ClassForgetting("lynx", 10, 6, "tabby"),
        ),
        "examples": (ForgottenRow(7, "lynx", "tabby", 0.9),),
    }
    return ExpertForgetting(**{**fields, **changes})


def dogs_forgetting(**changes: Any) -> ExpertForgetting:
    """Nothing is forgotten; the expert itself scores the rows."""
    fields: dict[str, Any] = {
        "expert": "o/dogs@step2",
        "task": "dogs@1",
        "scored_by": ("o/dogs@step2",),
        "before": 0.6,
        "after": 0.7,
        "learnt": 5,
        "bins": ForgottenByBin((0,) * 10, (3,) * 10),
        "classes": (ClassForgetting("pug", 30, 0),),
    }
    return ExpertForgetting(**{**fields, **changes})


def forgetting(**changes: Any) -> Forgetting:
    fields: dict[str, Any] = {
        "model": MODEL,
        "split": "train",
        "experts": (cats_forgetting(), dogs_forgetting()),
    }
    return Forgetting(**{**fields, **changes})
