"""Licences: reading them from cards, the most restrictive one, and conflicts."""

from __future__ import annotations

import itertools

import pytest

from hubmerge.cards.licence import (
    card_licence,
    licence_conflicts,
    licence_id,
    licence_metadata,
    most_restrictive,
)


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: mit", "mit"),
        ("license: Apache-2.0", "apache-2.0"),
        ("license: [cc-by-nc-4.0]", "cc-by-nc-4.0"),
        ("license: [mit, apache-2.0]", None),
        ("license: unknown", None),
        ("license: other\nlicense_name: My Own *License*", "my-own-license"),
        ("license: other", "other"),
        ("license: 7", None),
        ("license: {a: b}", None),
        ("tags: [x]", None),
        ("license: !!python/object:os.system x", None),
        ("a: &a [x]\nlicense: mit\nb: *a", None),
        ("license: " + "[" * 60 + "]" * 60, None),
        ("license: mit\nx: " + "y" * 300_000, None),
    ],
)
def test_the_licence_of_a_card(front: str, licence: str | None) -> None:
    assert card_licence(f"---\n{front}\n---\n# Model\n".encode()) == licence


@pytest.mark.parametrize("card", [b"", b"# No front matter", b"\xff\xfe\x00", b"---\nlicense: mit"])
def test_a_card_without_a_licence(card: bytes) -> None:
    assert card_licence(card) is None


@pytest.mark.parametrize(
    ("licences", "result"),
    [
        (["mit", "mit"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "mpl-2.0"], "mpl-2.0"),
        (["mit", "lgpl-3.0", "gpl-3.0"], "gpl-3.0"),
        (["gpl-3.0", "agpl-3.0", "cc-by-sa-4.0"], None),
        (["gpl-3.0", "agpl-3.0"], "agpl-3.0"),
        (["cc-by-4.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mit"], "cc-by-nc-sa-4.0"),
        (["llama3", "mit"], "llama3"),
        (["made-up", "mit"], "made-up"),
        (["mit", None], None),
        (["gpl-3.0", "cc-by-nc-4.0"], None),
        (["llama3", "gemma"], None),
        (["made-up", "also-made-up"], None),
        ([], None),
    ],
)
def test_the_most_restrictive(licences: list[str | None], result: str | None) -> None:
    assert {most_restrictive(order) for order in itertools.permutations(licences)} == {result}


def test_a_conflict_names_both_repositories() -> None:
    named = {"o/a": "gpl-3.0", "o/b": "mit", "o/c": "cc-by-nc-4.0", "o/d": None, "o/e": "gpl-3.0"}
    assert list(licence_conflicts(named)) == [
        "o/a is under gpl-3.0 and o/c under cc-by-nc-4.0: no known licence satisfies both."
    ]
    assert list(licence_conflicts({"o/a": "mit", "o/b": "gpl-3.0", "o/c": None})) == []


def test_no_derivatives_licences_conflict_with_merging() -> None:
    assert list(licence_conflicts({"o/a": "cc-by-nc-nd-4.0"})) == [
        "o/a is under cc-by-nc-nd-4.0, which forbids distributing modified works."
    ]


def test_the_front_matter_uses_only_licences_of_the_hub() -> None:
    assert licence_metadata("gemma") == {"license": "gemma"}
    assert licence_metadata(None) == {"license": "unknown"}
    assert licence_metadata("my-own") == {"license": "other", "license_name": "my-own"}


@pytest.mark.parametrize("text", ["", "unknown", "  ", "||", "\n---\n"])
def test_text_without_a_licence(text: str) -> None:
    assert licence_id(text) is None
