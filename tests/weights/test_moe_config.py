"""moe_config.json: the same configuration gives the same bytes, and invalid ones are rejected."""

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
    EXPERTS_FOLDER,
    MOE_CONFIG,
    MoeConfig,
    MoeExpert,
    RouterConfig,
    is_moe_folder,
    parse_moe_config,
    read_moe_config,
    unique_folder_names,
)

LEGAL = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


def make_config(**changes: Any) -> MoeConfig:
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
    return MoeConfig(**{**values, **changes})


def test_round_trip(tmp_path: Path) -> None:
    assert not is_moe_folder(tmp_path)
    (tmp_path / MOE_CONFIG).write_bytes(make_config().to_bytes())
    assert is_moe_folder(tmp_path)
    assert read_moe_config(tmp_path) == make_config()
    assert read_moe_config(tmp_path).to_bytes() == make_config().to_bytes()


def test_content() -> None:
    fields = json.loads(make_config().to_bytes())
    assert fields["format"] == 1
    assert fields["router"] == {"signed": True, "temperature": 0.5, "init": "centroid"}
    assert fields["experts"][0] == {
        "name": "mnist", "task": "mini-mnist@1", "step": 4, "source_repo": "o/mnist",
        "source_revision": "b" * 40,
    }  # fmt: skip
    assert fields["experts"][1]["step"] is None


def test_defaults_and_unknown_keys() -> None:
    fields = json.loads(make_config().to_bytes())
    for name in ("router", "format"):
        del fields[name]
    fields |= {"experts": [{"name": "one", "colour": "red"}], "top_k": 1, "licence": "mit"}
    read = parse_moe_config(json.dumps(fields).encode(), "x")
    assert read.router == RouterConfig()
    assert read.experts == (MoeExpert("one"),)


Change = Callable[[dict[str, Any]], object]


def set_fields(**values: Any) -> Change:
    return lambda fields: fields.update(values)


def set_names(*names: str) -> Change:
    return set_fields(experts=[{"name": name} for name in names], top_k=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (set_names(".."), "'..' is not a valid name of an expert"),
        (set_names("a..b"), "not a valid name"),
        (set_names("../../etc"), "not a valid name"),
        (set_names("a/b"), "not a valid name"),
        (set_names("a\\b"), "not a valid name"),
        (set_names("/etc/passwd"), "not a valid name"),
        (set_names(""), "not a valid name"),
        (set_names("."), "not a valid name"),
        (set_names(".git"), "not a valid name"),
        (set_names("-rf"), "not a valid name"),
        (set_names("a" * 65), "not a valid name"),
        (set_names("Upper"), "not a valid name"),
        (set_names("a\x00b"), "not a valid name"),
        (set_names("a\n"), "not a valid name"),
        (set_names("\x1b[31mred"), "not a valid name"),
        (set_names("naïve"), "not a valid name"),
        (set_names("a", "a"), "two experts are named 'a'"),
        (set_fields(experts=[]), "there are 0 experts"),
        (set_fields(top_k=0), "top_k"),
        (set_fields(top_k=-1), "top_k"),
        (set_fields(top_k=3), "top_k is 3, and there are 2 experts"),
        (set_fields(top_k=10**30), "top_k"),
        (set_fields(top_k=1.0), "top_k"),
        (set_fields(top_k="1"), "top_k"),
        (set_fields(top_k=True), "top_k"),
        (set_fields(modules=[]), "list of modules is empty"),
        (set_fields(modules=["a", "a"]), "one of them twice"),
        (set_fields(modules=["a/b"]), "'a/b' is not a module path"),
        (set_fields(modules=["a..b"]), "is not a module path"),
        (set_fields(modules=["a.weight\n"]), "is not a module path"),
        (set_fields(layout="keras"), "layout"),
        (set_fields(format=2), "has format 2, and this hubmerge knows 1"),
        (set_fields(format="1"), "has format 1"),
        (set_fields(base_model=None), "base_model"),
        (set_fields(router={"temperature": 0}), "router.temperature"),
        (set_fields(router={"temperature": -1}), "router.temperature"),
        (set_fields(router={"signed": "no"}), "router.signed"),
        (set_fields(router={"init": "magic"}), "router.init"),
        (set_fields(experts=[{"task": "x"}]), "experts.0.name"),
        (set_fields(experts="mnist"), "experts"),
    ],
)
def test_invalid_configurations_are_rejected(change: Change, sentence: str) -> None:
    fields = json.loads(make_config().to_bytes())
    change(fields)
    with pytest.raises(CheckpointError) as caught:
        parse_moe_config(json.dumps(fields).encode(), "x")
    assert sentence in caught.value.message
    assert "\x1b" not in caught.value.message
    assert caught.value.message.startswith("x") or "x: " in caught.value.message


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b'"moe"', b"\xff\xfe", b"[" * 100_000, b'{"top_k": NaN}',
     b'{"a": 1, "a": 1}', b" " * (5 << 20)],
    ids=range(10),
)  # fmt: skip
def test_not_a_json_object(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        parse_moe_config(data, "x")
    (tmp_path / MOE_CONFIG).write_bytes(data)
    with pytest.raises(CheckpointError):
        read_moe_config(tmp_path)


def test_non_finite_temperatures_are_rejected() -> None:
    for word in (b"NaN", b"Infinity", b"1e999"):
        data = make_config().to_bytes().replace(b"0.5", word)
        with pytest.raises(CheckpointError):
            parse_moe_config(data, "x")


def test_all_problems_are_reported_at_once() -> None:
    fields = json.loads(make_config().to_bytes())
    fields |= {"experts": [{"name": ".."}, {"name": "a"}, {"name": "a"}], "modules": ["b/"]}
    fields["top_k"] = 9
    with pytest.raises(CheckpointError) as caught:
        parse_moe_config(json.dumps(fields).encode(), "x")
    for sentence in (
        "'..' is not a valid",
        "two experts are named 'a'",
        "top_k is 9",
        "'b/' is not",
    ):
        assert sentence in caught.value.message


def test_configuration_must_be_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(make_config().to_bytes())
    (tmp_path / MOE_CONFIG).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError):
        read_moe_config(tmp_path)
    (tmp_path / MOE_CONFIG).unlink()
    (tmp_path / MOE_CONFIG).mkdir()
    with pytest.raises(CheckpointError):
        read_moe_config(tmp_path)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["mini-mnist", "mini-kana"], ("mini-mnist", "mini-kana")),
        (["mnist", "mnist", "mnist"], ("mnist", "mnist-2", "mnist-3")),
        (["a", "a-2", "a"], ("a", "a-2", "a-3")),
        (["a", "a", "a-2"], ("a", "a-2", "a-2-2")),
        (["A b!", "../../x", "", "日本"], ("a-b", "x", "expert", "expert-2")),
        (["m" * 99], ("m" * 56,)),
    ],
)
def test_folder_names(labels: list[str], names: tuple[str, ...]) -> None:
    assert unique_folder_names(labels) == names


@settings(max_examples=200)
@given(st.lists(st.text(max_size=70) | st.sampled_from(["a", "a-2", "a-2-2"]), max_size=12))
def test_folder_names_are_valid_and_unique(labels: list[str]) -> None:
    names = unique_folder_names(labels)
    assert len(set(names)) == len(labels)
    assert all(LEGAL.fullmatch(name) and ".." not in name for name in names)
    if names:
        experts = tuple(MoeExpert(name) for name in names)
        assert (
            parse_moe_config(make_config(experts=experts, top_k=1).to_bytes(), "x").experts
            == experts
        )
    assert EXPERTS_FOLDER == "experts"
