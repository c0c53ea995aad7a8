"""What an author writes around our part of a card is kept, whatever became of the markers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.cards.author_text import BEGIN, END, around, whole_card

OURS = f"{BEGIN}\nold numbers\n{END}\n"
SAID = {"license": "unknown", "library_name": "peft"}


def again(before: str) -> str:
    return whole_card(SAID, "new numbers", before)


@pytest.mark.parametrize(
    ("before", "above", "below"),
    [
        ("", "", ""),
        (f"mine\n{OURS}also mine\n", "mine\n", "also mine\n"),
        # Doubled: the first part is replaced, the second goes, the text between stays.
        (f"a\n{OURS}b\n{OURS}c\n", "a\n", "b\nc\n"),
        (f"a\n{BEGIN}\nb\n{OURS}c\n", "a\nb\n", "c\n"),
        (f"a\n{OURS}b\n{END}\nc\n", "a\n", "b\nc\n"),
        # Swapped, or one of them gone: no text is ours.
        (f"a\n{END}\nb\n{BEGIN}\nc\n", "a\nb\n", "c\n"),
        (f"a\n{BEGIN}\nb\n", "a\n", "b\n"),
        (f"a\n{END}\nb\n", "", "a\nb\n"),
        ("all mine\n", "", "all mine\n"),
        # Shown in code, or in a sentence.
        (f"```\n{OURS}```\n{OURS}b\n", f"```\n{OURS}```\n", "b\n"),
        (f"~~~~\n~~~\n{BEGIN}\n~~~~\n{OURS}", f"~~~~\n~~~\n{BEGIN}\n~~~~\n", ""),
        (f"Write `{BEGIN}` and {END}.\n{OURS}b\n", f"Write `{BEGIN}` and {END}.\n", "b\n"),
        (f"    {BEGIN}\n{OURS}", f"    {BEGIN}\n", ""),
        (f"mine{BEGIN}\n{OURS}", f"mine{BEGIN}\n", ""),
        (OURS.replace("\n", "\r\n") + "b\r\n", "", "b\r\n"),
    ],
)
def test_what_stands_around_our_part(before: str, above: str, below: str) -> None:
    assert around(before) == (above, below)
    assert around(f"---\nlicense: mit\n---\n{before}") == (above, below)


def test_a_front_matter_that_cannot_be_read_is_text() -> None:
    broken = f"---\n- no mapping\n---\n{OURS}b\n"
    assert around(broken) == ("---\n- no mapping\n---\n", "b\n")


LINES = st.lists(st.sampled_from([BEGIN, END, "```", "~~~", "mine", "also mine", ""]), max_size=9)


@given(LINES)
def test_telling_twice_changes_nothing_and_our_part_is_there_once(lines: list[str]) -> None:
    before = "".join(f"{line}\n" for line in lines)
    once = again(before)
    assert again(once) == once
    assert once.count("new numbers") == 1


@given(LINES)
def test_no_line_outside_a_part_is_lost(lines: list[str]) -> None:
    before = "".join(f"{line}\n" for line in lines)
    parts = before.split(f"{BEGIN}\n")
    if len(parts) == 1 or f"{END}\n" not in before:
        kept = "".join(around(before)).splitlines()
        assert [x for x in kept if "mine" in x] == [x for x in lines if "mine" in x]


def test_keys_that_we_never_write_stay() -> None:
    before = f"---\nlanguage: hi\nwidget:\n- text: Hello\ndatasets:\n- o/old\n---\n{OURS}"
    head = again(before).split(BEGIN)[0]
    assert "language: hi\nwidget:\n- text: Hello\n" in head
    assert "o/old" not in head


def test_a_licence_that_the_author_wrote_stays() -> None:
    stated = "license: other\nlicense_name: mine\nlicense_link: LICENSE\n"
    assert stated in again(f"---\n{stated}---\n{OURS}")
    known = whole_card({"license": "mit"}, "x", f"---\nlicense: unknown\n---\n{OURS}")
    assert "license: mit\n" in known


def test_a_bomb_in_the_front_matter_is_left_alone() -> None:
    bomb = "---\na: &a [x, x]\nb: &b [*a, *a]\n---\n"
    assert again(f"{bomb}{OURS}").endswith(f"{bomb}{BEGIN}\nnew numbers\n{END}\n")
