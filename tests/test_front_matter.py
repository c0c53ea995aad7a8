"""Front matter is read as plain values, and hostile YAML is refused with little work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from yaml import SafeLoader

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


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[yaml.Event]:
    """The YAML events that were read."""
    read: list[yaml.Event] = []
    parse = yaml.parse

    def record(*args: Any, **options: Any) -> Iterator[yaml.Event]:
        for event in parse(*args, **options):
            read.append(event)
            yield event

    monkeypatch.setattr(yaml, "parse", record)
    return read


@pytest.mark.parametrize(("front_matter", "problem"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_front_matter_is_refused(front_matter: str, problem: str) -> None:
    assert problem in card_problem(card(front_matter))
    assert card_data(card(front_matter)) == {}


def test_an_alias_bomb_is_read_up_to_its_first_alias(events: list[yaml.Event]) -> None:
    card_problem(card(BOMB))
    assert [isinstance(event, yaml.AliasEvent) for event in events].index(True) == len(events) - 1


@pytest.mark.parametrize("depth", [100, 200, 5000])
def test_nested_values_are_read_up_to_the_limit(events: list[yaml.Event], depth: int) -> None:
    card_problem(card("a: " + "[" * depth))
    assert sum(isinstance(event, yaml.SequenceStartEvent) for event in events) == 40


def test_the_work_does_not_grow_with_the_nesting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    fetch_more_tokens = SafeLoader.fetch_more_tokens

    def count(loader: SafeLoader) -> None:
        nonlocal calls
        calls += 1
        fetch_more_tokens(loader)

    monkeypatch.setattr(SafeLoader, "fetch_more_tokens", count)
    work = []
    for depth in (5_000, 10_000):
        calls = 0
        card_problem(card("a: " + "[" * depth))
        work.append(calls)
    assert work[0] == work[1] > 0


def test_a_huge_front_matter_is_not_parsed(events: list[yaml.Event]) -> None:
    card_problem(card("a: " + "x" * (1 << 20)))
    assert events == []


def test_a_card_is_read_as_plain_json() -> None:
    data = card_data(card("date: 2026-01-02\nloss: .nan\n1: [a]\nset: !!set {b}"))
    assert data == {"date": "2026-01-02", "loss": None, "1": ["a"], "set": ["b"]}
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    "readme", ["", "# no front matter", "---\nunfinished: 1\n", "---\n\n---\n"]
)
def test_front_matter_may_be_missing(readme: str) -> None:
    assert card_data(readme) == {}
    assert card_problem(readme) == ""


def test_a_card_has_tags() -> None:
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
