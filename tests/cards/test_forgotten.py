"""What a card tells of what a merge forgot: in words, as a table, as bars and as images."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import PIL.Image

from hubmerge.cards.card import CardInput, render_card
from hubmerge.cards.forgotten import forgotten_rows, forgotten_words, scored_words
from hubmerge.cards.forgotten_bars import forgotten_picture
from hubmerge.cards.gallery import gallery_picture
from hubmerge.forgetting import Forgetting
from tests.cards.forgettings import cats, dogs, forgetting
from tests.cards.mixtures import mixture
from tests.cards.test_upcycling_card import shown_page
from tests.cards.worlds import lock, merge, scores

OWN = "scores of an early step show more"


@dataclass(frozen=True)
class Seen:
    what: Any
    label: str = "cat"
    predicted: str = "dog"


def told(found: Forgetting | None) -> str:
    return render_card(CardInput(merge(), scores(), lock=lock(), forgotten=found))


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG, in pixels."""
    width, height = struct.unpack(">II", picture[16:24])
    return width, height


def test_the_words_by_hand() -> None:
    # 10 of 40 cats and none of 30 dogs.
    assert forgotten_words(forgetting()) == (
        "On train, 10 of the 70 examples that their own experts have right are wrong in the merge: "
        "14.29 % are forgotten. 6 others it has right where the expert is wrong."
    )
    assert forgotten_rows(forgetting()) == [
        ["cats", "o/cats@step4", "80.00", "62.00", "40", "10", "25.00", "80.00",
         "lynx 6 (as tabby), tabby 4 (as lynx)"],
        ["dogs", "o/dogs@step2", "60.00", "70.00", "30", "0", "0.00", "-", "-"],
    ]  # fmt: skip


def test_it_says_whose_scores_they_are() -> None:
    assert scored_words(forgetting(experts=(cats(),))) == (
        "How hard an example is, is told by the mean EL2N of o/cats@step2."
    )
    assert OWN in scored_words(forgetting(experts=(dogs(),)))
    both = scored_words(forgetting())
    assert "by the EL2N of the merged experts themselves and by the mean EL2N of" in both


def test_a_card_shows_it_where_it_was_measured() -> None:
    assert "forgot" not in told(None)
    card = told(forgetting())
    assert "## What it forgot\n\nOn train, 10 of the 70 examples" in card
    assert "the hardest three tenths have cats 80.00 %, dogs 0.00 %.](forgotten.png)" in card
    assert "forgotten-examples.png" not in card
    assert "](forgotten-examples.png)" in told(forgetting(pictured=True))
    mixed = render_card(CardInput(mixture(), [], forgotten=forgetting()))
    assert "## What it forgot" in mixed


def test_hostile_names_are_text() -> None:
    bad = cats(expert="o/<b>|x", scored_by=("[a](b)",), task="a|b@1")
    page = shown_page(told(forgetting(experts=(bad,), pictured=True)))
    assert page is not None
    assert "<b>" not in told(forgetting(experts=(bad,)))


def test_bars_are_the_same_bytes_again() -> None:
    once = forgotten_picture(forgetting())
    assert once == forgotten_picture(forgetting())
    assert size(once)[0] == 1440
    assert size(forgotten_picture(forgetting(experts=(cats(),) * 5))) == (1440, 860)


def test_images_of_any_kind_are_shown_and_left_as_they_are() -> None:
    images = [PIL.Image.new(mode, (300, 200)) for mode in ("L", "RGB", "RGBA", "1", "P")]
    seen = [Seen(image) for image in images]
    drawn = gallery_picture([("t$x", [*seen, *seen[:4]]), ("none", []), ("u", seen[:1])])
    assert size(drawn) == (1440, 840)
    assert {image.size for image in images} == {(300, 200)}
