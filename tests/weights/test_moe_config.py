"""moe_config.json: the same mixture is the same bytes, and nothing hostile gets through."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.errors import CheckpointError
from hubmerge.weights.moe_config import (
    CONFIG,
    EXPERTS,
    MoeConfig,
    MoeExpert,
    RouterConfig,
    expert_names,
    is_mixture,
    parse_moe_config,
    read_moe_config,
)

LEGAL = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


def config(**said: Any) -> MoeConfig:
    values: dict[str, Any] = {
        "base_model": "o/base",
        "base_revision": "a" * 40,
        "base_digest": "0" * 64,
        "layout": "open_clip",
        "experts": (MoeExpert("mnist", "mini-mnist@1", 4, "o/mnist", "b" * 40), MoeExpert("svhn")),
        "top_k": 2,
        "modules": ("visual.attn.in_proj", "visual.mlp"),
        "router": RouterConfig(signed=True, temperature=0.5, init="centroid"),
    }
    return MoeConfig(**{**values, **said})


def test_written_and_read_it_is_the_same(tmp_path: Path) -> None:
    assert not is_mixture(tmp_path)
    (tmp_path / CONFIG).write_bytes(config().to_bytes())
    assert is_mixture(tmp_path)
    assert read_moe_config(tmp_path) == config()
    assert read_moe_config(tmp_path).to_bytes() == config().to_bytes()


def test_what_it_says() -> None:
    said = json.loads(config().to_bytes())
    assert said["format"] == 1
    assert said["router"] == {"signed": True, "temperature": 0.5, "init": "centroid"}
    assert said["experts"][0] == {
        "name": "mnist", "task": "mini-mnist@1", "step": 4, "source_repo": "o/mnist",
        "source_revision": "b" * 40,
    }  # fmt: skip
    assert said["experts"][1]["step"] is None


def test_least_and_unknown_keys_are_read() -> None:
    said = json.loads(config().to_bytes())
    for name in ("router", "format"):
        del said[name]
    said |= {"experts": [{"name": "one", "colour": "red"}], "top_k": 1, "licence": "mit"}
    read = parse_moe_config(json.dumps(said).encode(), "x")
    assert read.router == RouterConfig()
    assert read.experts == (MoeExpert("one"),)


Change = Callable[[dict[str, Any]], object]


def sets(**said: Any) -> Change:
    return lambda whole: whole.update(said)


def names(*said: str) -> Change:
    return sets(experts=[{"name": name} for name in said], top_k=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (names(".."), "'..' is no name of an expert"),
        (names("a..b"), "no name"),
        (names("../../etc"), "no name"),
        (names("a/b"), "no name"),
        (names("a\\b"), "no name"),
        (names("/etc/passwd"), "no name"),
        (names(""), "no name"),
        (names("."), "no name"),
        (names(".git"), "no name"),
        (names("-rf"), "no name"),
        (names("a" * 65), "no name"),
        (names("Upper"), "no name"),
        (names("a\x00b"), "no name"),
        (names("a\n"), "no name"),
        (names("\x1b[31mred"), "no name"),
        (names("naïve"), "no name"),
        (names("a", "a"), "two experts are called 'a'"),
        (sets(experts=[]), "there are 0 experts"),
        (sets(top_k=0), "top_k"),
        (sets(top_k=-1), "top_k"),
        (sets(top_k=3), "top_k is 3, and there are 2 experts"),
        (sets(top_k=10**30), "top_k"),
        (sets(top_k=1.0), "top_k"),
        (sets(top_k="1"), "top_k"),
        (sets(top_k=True), "top_k"),
        (sets(modules=[]), "modules are none"),
        (sets(modules=["a", "a"]), "one of them twice"),
        (sets(modules=["a/b"]), "'a/b' is no module"),
        (sets(modules=["a..b"]), "is no module"),
        (sets(modules=["a.weight\n"]), "is no module"),
        (sets(layout="keras"), "layout"),
        (sets(format=2), "has format 2, and this hubmerge knows 1"),
        (sets(format="1"), "has format 1"),
        (sets(base_model=None), "base_model"),
        (sets(router={"temperature": 0}), "router.temperature"),
        (sets(router={"temperature": -1}), "router.temperature"),
        (sets(router={"signed": "no"}), "router.signed"),
        (sets(router={"init": "magic"}), "router.init"),
        (sets(experts=[{"task": "x"}]), "experts.0.name"),
        (sets(experts="mnist"), "experts"),
    ],
)
def test_hostile_configurations_are_refused(change: Change, sentence: str) -> None:
    said = json.loads(config().to_bytes())
    change(said)
    with pytest.raises(CheckpointError) as refused:
        parse_moe_config(json.dumps(said).encode(), "x")
    assert sentence in refused.value.message
    assert "\x1b" not in refused.value.message
    assert refused.value.message.startswith("x") or "x: " in refused.value.message


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b'"moe"', b"\xff\xfe", b"[" * 100_000, b'{"top_k": NaN}',
     b'{"a": 1, "a": 1}', b" " * (5 << 20)],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_object(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        parse_moe_config(data, "x")
    (tmp_path / CONFIG).write_bytes(data)
    with pytest.raises(CheckpointError):
        read_moe_config(tmp_path)


def test_temperatures_that_are_no_numbers() -> None:
    for word in (b"NaN", b"Infinity", b"1e999"):
        data = config().to_bytes().replace(b"0.5", word)
        with pytest.raises(CheckpointError):
            parse_moe_config(data, "x")


def test_all_problems_at_once() -> None:
    said = json.loads(config().to_bytes())
    said |= {"experts": [{"name": ".."}, {"name": "a"}, {"name": "a"}], "modules": ["b/"]}
    said["top_k"] = 9
    with pytest.raises(CheckpointError) as refused:
        parse_moe_config(json.dumps(said).encode(), "x")
    for sentence in ("'..' is no name", "two experts are called 'a'", "top_k is 9", "'b/' is no"):
        assert sentence in refused.value.message


def test_a_folder_or_a_link_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(config().to_bytes())
    (tmp_path / CONFIG).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError):
        read_moe_config(tmp_path)
    (tmp_path / CONFIG).unlink()
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(CheckpointError):
        read_moe_config(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["mini-mnist", "mini-kana"], ("mini-mnist", "mini-kana")),
        (["mnist", "mnist", "mnist"], ("mnist", "mnist-2", "mnist-3")),
        (["a", "a-2", "a"], ("a", "a-2", "a-3")),
        (["a", "a", "a-2"], ("a", "a-2", "a-2-2")),
        (["A b!", "../../x", "", "日本"], ("a-b", "x", "expert", "expert-2")),
        (["m" * 99], ("m" * 56,)),
    ],
)
def test_names_of_folders(wanted: list[str], found: tuple[str, ...]) -> None:
    assert expert_names(wanted) == found


@settings(max_examples=200)
@given(st.lists(st.text(max_size=70) | st.sampled_from(["a", "a-2", "a-2-2"]), max_size=12))
def test_names_are_always_legal_and_never_the_same(wanted: list[str]) -> None:
    found = expert_names(wanted)
    assert len(set(found)) == len(wanted)
    assert all(LEGAL.fullmatch(name) and ".." not in name for name in found)
    if found:
        experts = tuple(MoeExpert(name) for name in found)
        assert parse_moe_config(config(experts=experts, top_k=1).to_bytes(), "x").experts == experts
    assert EXPERTS == "experts"
