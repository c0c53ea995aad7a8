"""What a forgotten.json tells: how much of each expert, how hard, which classes; in words."""

from __future__ import annotations

from typing import Any

from hubmerge.cards.markdown import listed, plain
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.forgetting import Forgetting, OfClass, OfExpert
from hubmerge.scores import shown_names

PICTURE, GALLERY = "forgotten.png", "forgotten-examples.png"
_MOST_CLASSES, _MOST_NAMED = 3, 12


def forgotten_section(found: Forgetting) -> dict[str, Any]:
    """What the card's section is filled with, all text escaped."""
    gallery = f"![{_gallery_words(found)}]({GALLERY})" if found.pictured else ""
    return {
        "words": plain(forgotten_words(found)),
        "scored": plain(scored_words(found)),
        "picture": f"![{plain(bars_words(found))}]({PICTURE})",
        "gallery": gallery,
        "rows": [[plain(cell) for cell in row] for row in forgotten_rows(found)],
    }


def forgotten_words(found: Forgetting) -> str:
    """How much of what the experts have right the merge has wrong, in a sentence or two."""
    known = sum(one.known for one in found.experts)
    gone = sum(one.bins.total for one in found.experts)
    learnt = sum(one.learnt for one in found.experts)
    return (
        f"On {found.split}, {gone} of the {known} examples that their own experts have right are "
        f"wrong in the merge: {percent(gone / max(known, 1))} % are forgotten. "
        f"{learnt} others it has right where the expert is wrong."
    )


def scored_words(found: Forgetting) -> str:
    """By whose EL2N examples are hard or easy."""
    own = [one.expert for one in found.experts if one.scored_by == (one.expert,)]
    others = dict.fromkeys(
        name for one in found.experts if one.expert not in own for name in one.scored_by
    )
    said = ["the EL2N of the merged experts themselves"] if own else []
    said += [f"the mean EL2N of {listed(list(others), _MOST_NAMED)}"] if others else []
    # What an expert has wrong is hard by its own score, and cannot be forgotten.
    caveat = (
        " By an expert's own score the hardest bins are those that it has wrong itself, where "
        "nothing can be forgotten: scores of an early step show more."
    )
    return f"How hard an example is, is told by {' and by '.join(said)}.{caveat if own else ''}"


def forgotten_rows(found: Forgetting) -> list[list[str]]:
    """One row an expert: task, expert, its accuracy and the merge's, known, forgotten, in %,
    the part of it that is hard, the classes that lose most; shares in %.
    """
    names = shown_names(one.task for one in found.experts)
    return [
        [
            names[one.task],
            one.expert,
            percent(one.before),
            percent(one.after),
            str(one.known),
            str(one.bins.total),
            percent(one.bins.total / max(one.known, 1)),
            percent(one.bins.hardest_share) if one.bins.total else MISSING,
            classes_words(one),
        ]
        for one in found.experts
    ]


def most_forgotten(one: OfExpert) -> list[OfClass]:
    """The classes of which anything is forgotten, those that lose most rows first."""
    lost = [its for its in one.classes if its.forgotten]
    return sorted(lost, key=lambda its: -its.forgotten)


def classes_words(one: OfExpert) -> str:
    """The classes that lose most: "seven 40 (as one), two 12 (as three)"."""
    worst = most_forgotten(one)[:_MOST_CLASSES]
    return ", ".join(f"{its.name} {its.forgotten} (as {its.taken_for})" for its in worst) or MISSING


def bars_words(found: Forgetting) -> str:
    """What the bars show, for those who cannot see them."""
    names = shown_names(one.task for one in found.experts)
    said = [f"{names[one.task]} {percent(one.bins.hardest_share)} %" for one in found.experts]
    return (
        "Bars of the share of all forgotten examples by bin of difficulty, easiest to hardest; the "
        f"hardest three tenths have {listed(said, _MOST_NAMED)}."
    )


def _gallery_words(found: Forgetting) -> str:
    said = [one.expert for one in found.experts if one.examples]
    return plain(
        "Images that the expert has right and the merge has wrong, hardest first, for "
        f"{listed(said, _MOST_NAMED)}."
    )
