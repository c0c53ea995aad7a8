"""Describes forgotten.json: how much each expert loses, how difficult it is, in which classes."""

from __future__ import annotations

from typing import Any

from hubmerge.cards.markdown import escape_markdown, join_names
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.forgetting import ClassForgetting, ExpertForgetting, Forgetting
from hubmerge.scores import display_names

PICTURE, GALLERY = "forgotten.png", "forgotten-examples.png"
_MOST_CLASSES, _MOST_NAMED = 3, 12


def forgotten_section(forgetting: Forgetting) -> dict[str, Any]:
    """The variables of the card's section, all text escaped."""
    gallery = f"![{_describe_gallery(forgetting)}]({GALLERY})" if forgetting.pictured else ""
    return {
        "summary": escape_markdown(describe_forgetting(forgetting)),
        "difficulty": escape_markdown(describe_difficulty(forgetting)),
        "picture": f"![{escape_markdown(describe_bars(forgetting))}]({PICTURE})",
        "gallery": gallery,
        "rows": [[escape_markdown(cell) for cell in row] for row in forgotten_rows(forgetting)],
    }


def describe_forgetting(forgetting: Forgetting) -> str:
    """How many of the examples that the experts classify correctly the merge gets wrong."""
    known = sum(expert.known for expert in forgetting.experts)
    lost = sum(expert.bins.total for expert in forgetting.experts)
    learnt = sum(expert.learnt for expert in forgetting.experts)
    return (
        f"On {forgetting.split}, the experts get {known} examples of their own tasks right; the "
        f"merge gets {lost} of these wrong: {percent(lost / max(known, 1))} % are forgotten. It "
        f"gets {learnt} examples right that the expert gets wrong."
    )


def describe_difficulty(forgetting: Forgetting) -> str:
    """Which models' EL2N scores rank the examples by difficulty."""
    own = [expert.expert for expert in forgetting.experts if expert.scored_by == (expert.expert,)]
    others = dict.fromkeys(
        name
        for expert in forgetting.experts
        if expert.expert not in own
        for name in expert.scored_by
    )
    scores = ["the EL2N of the merged experts themselves"] if own else []
    scores += [f"the mean EL2N of {join_names(list(others), _MOST_NAMED)}"] if others else []
    caveat = (
        " By its own scores, the hardest examples of an expert are those that it gets wrong, and "
        "these cannot be forgotten: scores of an early step show more."
    )
    return f"Examples are ranked by {' and by '.join(scores)}.{caveat if own else ''}"


def forgotten_rows(forgetting: Forgetting) -> list[list[str]]:
    """One row per expert, shares in percent.

    Its columns: task, expert, accuracy of the expert and of the merge, number known and forgotten,
    share of the known that is forgotten, share of the forgotten that is hard, and worst classes.
    """
    names = display_names(expert.task for expert in forgetting.experts)
    return [
        [
            names[expert.task],
            expert.expert,
            percent(expert.before),
            percent(expert.after),
            str(expert.known),
            str(expert.bins.total),
            percent(expert.bins.total / max(expert.known, 1)),
            percent(expert.bins.hardest_share) if expert.bins.total else MISSING,
            describe_classes(expert),
        ]
        for expert in forgetting.experts
    ]


def most_forgotten_classes(expert: ExpertForgetting) -> list[ClassForgetting]:
    """The classes with forgotten examples, most forgotten first."""
    lost = [label for label in expert.classes if label.forgotten]
    return sorted(lost, key=lambda label: -label.forgotten)


def describe_classes(expert: ExpertForgetting) -> str:
    """The classes that lose most: "seven 40 (as one), two 12 (as three)"."""
    worst = most_forgotten_classes(expert)[:_MOST_CLASSES]
    described = [f"{label.name} {label.forgotten} (as {label.taken_for})" for label in worst]
    return ", ".join(described) or MISSING


def describe_bars(forgetting: Forgetting) -> str:
    """The alternative text of the bar charts."""
    names = display_names(expert.task for expert in forgetting.experts)
    shares = [
        f"{names[expert.task]} {percent(expert.bins.hardest_share)} %"
        for expert in forgetting.experts
    ]
    return (
        "Bars of the share of all forgotten examples by bin of difficulty, easiest to hardest; the "
        f"hardest three tenths have {join_names(shares, _MOST_NAMED)}."
    )


def _describe_gallery(forgetting: Forgetting) -> str:
    experts = [expert.expert for expert in forgetting.experts if expert.examples]
    return escape_markdown(
        "Images that the expert gets right and the merge gets wrong, hardest first, for "
        f"{join_names(experts, _MOST_NAMED)}."
    )
