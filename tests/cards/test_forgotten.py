"""The card's section on forgotten examples: in words, as a table, as bars and as images."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import PIL.Image

from hubmerge.cards.card import CardInput, render_card
from hubmerge.cards.forgotten import describe_difficulty, describe_forgetting, forgotten_rows
from hubmerge.cards.forgotten_bars import forgotten_bars_png
from hubmerge.cards.gallery import gallery_png
from hubmerge.forgetting import Forgetting
from tests.cards.builders import lock, merge, scores
from tests.cards.forgetting_builders import cats_forgetting, dogs_forgetting, forgetting
from tests.cards.moe_builders import moe_manifest
from tests.cards.test_upcycling_card import render_page

OWN_SCORES_CAVEAT = "scores of an early step show more"


@dataclass(frozen=True)
class Image:
    content: Any
    label: str = "cat"
    predicted: str = "dog"


def merge_card(forgotten: Forgetting | None) -> str:
    return render_card(CardInput(merge(), scores(), lock=lock(), forgotten=forgotten))


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG, in pixels."""
    width, height = struct.unpack(">II", picture[16:24])
    return width, height


def test_the_description_and_the_rows() -> None:
    # 10 of 40 cats and none of 30 dogs.
    assert describe_forgetting(forgetting()) == (
        "On train, the experts get 70 examples of their own tasks right; the merge gets 10 of "
        "these wrong: 14.29 % are forgotten. It gets 6 examples right that the expert gets wrong."
    )
    assert forgotten_rows(forgetting()) == [
        ["cats", "o/cats@step4", "80.00", "62.00", "40", "10", "25.00", "80.00",
         "lynx 6 (as tabby), tabby 4 (as lynx)"],
        ["dogs", "o/dogs@step2", "60.00", "70.00", "30", "0", "0.00", "-", "-"],
    ]  # fmt: skip


def test_the_description_names_the_scoring_models() -> None:
    assert describe_difficulty(forgetting(experts=(cats_forgetting(),))) == (
        "Examples are ranked by the mean EL2N of o/cats@step2."
    )
    assert OWN_SCORES_CAVEAT in describe_difficulty(forgetting(experts=(dogs_forgetting(),)))
    both = describe_difficulty(forgetting())
    assert "by the EL2N of the merged experts themselves and by the mean EL2N of" in both


def test_a_card_has_the_section_only_if_it_was_measured() -> None:
    assert "forgot" not in merge_card(None)
    card = merge_card(forgetting())
    assert "## What it forgot\n\nOn train, the experts get 70 examples" in card
    assert "the hardest three tenths have cats 80.00 %, dogs 0.00 %.](forgotten.png)" in card
    assert "forgotten-examples.png" not in card
    assert "](forgotten-examples.png)" in merge_card(forgetting(pictured=True))
    moe_card = render_card(CardInput(moe_manifest(), [], forgotten=forgetting()))
    assert "## What it forgot" in moe_card


def test_hostile_names_are_text() -> None:
    bad = cats_forgetting(expert="o/<b>|x", scored_by=("[a](b)",), task="a|b@1")
    page = render_page(merge_card(forgetting(experts=(bad,), pictured=True)))
    assert page is not None
    assert "<b>" not in merge_card(forgetting(experts=(bad,)))


def test_bars_are_reproducible() -> None:
    picture = forgotten_bars_png(forgetting())
    assert picture == forgotten_bars_png(forgetting())
    assert size(picture)[0] == 1440
    assert size(forgotten_bars_png(forgetting(experts=(cats_forgetting(),) * 5))) == (1440, 860)


def test_images_of_any_mode_are_drawn_and_not_changed() -> None:
    images = [PIL.Image.new(mode, (300, 200)) for mode in ("L", "RGB", "RGBA", "1", "P")]
    rows = [Image(image) for image in images]
    picture = gallery_png([("t$x", [*rows, *rows[:4]]), ("none", []), ("u", rows[:1])])
    assert size(picture) == (1440, 840)
    assert {image.size for image in images} == {(300, 200)}
