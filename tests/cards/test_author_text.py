"""The author's text around the generated part of a card is kept, even with damaged markers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.cards.author_text import BEGIN, END, assemble_card, split_author_text

GENERATED = f"{BEGIN}\nold numbers\n{END}\n"
FRONT_MATTER = {"license": "unknown", "library_name": "peft"}


def update(previous: str) -> str:
    return assemble_card(FRONT_MATTER, "new numbers", previous)


@pytest.mark.parametrize(
    ("card", "above", "below"),
    [
        ("", "", ""),
        (f"mine\n{GENERATED}also mine\n", "mine\n", "also mine\n"),
        # Doubled: the first part is replaced, the second is removed, the text between is kept.
        (f"a\n{GENERATED}b\n{GENERATED}c\n", "a\n", "b\nc\n"),
        (f"a\n{BEGIN}\nb\n{GENERATED}c\n", "a\nb\n", "c\n"),
        (f"a\n{GENERATED}b\n{END}\nc\n", "a\n", "b\nc\n"),
        # Swapped, or one marker missing: no text is generated.
        (f"a\n{END}\nb\n{BEGIN}\nc\n", "a\nb\n", "c\n"),
        (f"a\n{BEGIN}\nb\n", "a\n", "b\n"),
        (f"a\n{END}\nb\n", "", "a\nb\n"),
        ("all mine\n", "", "all mine\n"),
        # Quoted in code or in a sentence.
        (f"```\n{GENERATED}```\n{GENERATED}b\n", f"```\n{GENERATED}```\n", "b\n"),
        (f"~~~~\n~~~\n{BEGIN}\n~~~~\n{GENERATED}", f"~~~~\n~~~\n{BEGIN}\n~~~~\n", ""),
        (f"Write `{BEGIN}` and {END}.\n{GENERATED}b\n", f"Write `{BEGIN}` and {END}.\n", "b\n"),
        (f"    {BEGIN}\n{GENERATED}", f"    {BEGIN}\n", ""),
        (f"mine{BEGIN}\n{GENERATED}", f"mine{BEGIN}\n", ""),
        (GENERATED.replace("\n", "\r\n") + "b\r\n", "", "b\r\n"),
    ],
)
def test_text_around_the_generated_part(card: str, above: str, below: str) -> None:
    assert split_author_text(card) == (above, below)
    assert split_author_text(f"---\nlicense: mit\n---\n{card}") == (above, below)


def test_an_unreadable_front_matter_is_text() -> None:
    broken = f"---\n- no mapping\n---\n{GENERATED}b\n"
    assert split_author_text(broken) == ("---\n- no mapping\n---\n", "b\n")


LINES = st.lists(st.sampled_from([BEGIN, END, "```", "~~~", "mine", "also mine", ""]), max_size=9)


@given(LINES)
def test_updating_twice_changes_nothing_and_there_is_one_generated_part(lines: list[str]) -> None:
    card = "".join(f"{line}\n" for line in lines)
    updated = update(card)
    assert update(updated) == updated
    assert updated.count("new numbers") == 1


@given(LINES)
def test_no_line_outside_the_generated_part_is_lost(lines: list[str]) -> None:
    card = "".join(f"{line}\n" for line in lines)
    parts = card.split(f"{BEGIN}\n")
    if len(parts) == 1 or f"{END}\n" not in card:
        kept = "".join(split_author_text(card)).splitlines()
        assert [x for x in kept if "mine" in x] == [x for x in lines if "mine" in x]


def test_other_front_matter_keys_are_kept() -> None:
    previous = f"---\nlanguage: hi\nwidget:\n- text: Hello\ndatasets:\n- o/old\n---\n{GENERATED}"
    head = update(previous).split(BEGIN)[0]
    assert "language: hi\nwidget:\n- text: Hello\n" in head
    assert "o/old" not in head


def test_a_licence_stated_by_the_author_is_kept() -> None:
    stated = "license: other\nlicense_name: mine\nlicense_link: LICENSE\n"
    assert stated in update(f"---\n{stated}---\n{GENERATED}")
    known = assemble_card({"license": "mit"}, "x", f"---\nlicense: unknown\n---\n{GENERATED}")
    assert "license: mit\n" in known


def test_a_yaml_bomb_in_the_front_matter_is_not_expanded() -> None:
    bomb = "---\na: &a [x, x]\nb: &b [*a, *a]\n---\n"
    assert update(f"{bomb}{GENERATED}").endswith(f"{bomb}{BEGIN}\nnew numbers\n{END}\n")
