"""Front matter: read as plain values, and never at any price."""

from __future__ import annotations

import json
import time

import pytest

from hubmerge.front_matter import card_data, card_problem, card_tags

BOMB = "\n".join(["a: &a [x]", *(f"{n}: &{n} [*a,*a,*a,*a,*a,*a]" for n in "bcdefghij")])
HOSTILE = {
    "alias bomb": (BOMB, "alias"),
    "python object": ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
    "deep": ("a: " + "[" * 5000, "nested"),
    "huge": ("a: " + "x" * (1 << 20), "larger"),
    "list": ("- a", "mapping"),
    "broken": ("a: [", "not valid YAML"),
}


def card(front_matter: str) -> str:
    return f"---\n{front_matter}\n---\n# A model\n"


@pytest.mark.parametrize(("front_matter", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_front_matter_is_refused_at_once(front_matter: str, said: str) -> None:
    start = time.monotonic()
    assert said in card_problem(card(front_matter))
    assert card_data(card(front_matter)) == {}
    assert time.monotonic() - start < 1


def test_a_card_reads_as_plain_json() -> None:
    data = card_data(card("date: 2026-01-02\nloss: .nan\n1: [a]\nset: !!set {b}"))
    assert data == {"date": "2026-01-02", "loss": None, "1": ["a"], "set": ["b"]}
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    "readme", ["", "# no front matter", "---\nunfinished: 1\n", "---\n\n---\n"]
)
def test_a_card_may_say_nothing(readme: str) -> None:
    assert card_data(readme) == {}
    assert card_problem(readme) == ""


def test_a_card_stands_for_tags() -> None:
    front_matter = (
        "license: mit\nlanguage: [en, de]\ntags: [merge]\nlibrary_name: open_clip\n"
        "datasets: [me/data]\nbase_model: [a/b]\nbase_model_relation: merge"
    )
    assert card_tags(card_data(card(front_matter))) == [
        "merge",
        "open_clip",
        "license:mit",
        "dataset:me/data",
        "en",
        "de",
        "base_model:a/b",
        "base_model:merge:a/b",
    ]
