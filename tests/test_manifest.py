from __future__ import annotations

import dataclasses
import json

import pytest

from hubmerge.errors import IntegrityError
from hubmerge.manifest import Manifest, Source, last_recipe, parse_manifest

BASE = Source("o/base@" + "b" * 40, "b" * 40, "d" * 64)


def expert(name: str, step: int, last: int | None = 512) -> Source:
    sha = f"{name}{step}".ljust(40, "0")
    last_sha = f"{name}{last}".ljust(40, "0") if last else None
    return Source(f"o/{name}@step{step}", sha, "e" * 64, step, name, 1.0, last, last_sha)


def merge(*experts: Source, **more: object) -> Manifest:
    params = {"density": 0.2, "scale": 1.0}
    said = {"kind": "merge", "base": BASE, "experts": experts, "method": "ties", "params": params}
    return Manifest(**{**said, **more})  # type: ignore[arg-type]


def test_a_manifest_is_read_as_it_was_written() -> None:
    manifest = merge(expert("a", 64), expert("b", 128)).with_files({"w.safetensors": "f" * 64})
    assert parse_manifest(manifest.to_bytes(), "here") == manifest
    assert parse_manifest(manifest.to_bytes(), "here").to_bytes() == manifest.to_bytes()


def test_a_recipe_does_not_hang_on_the_order_of_experts() -> None:
    a, b = expert("a", 64), expert("b", 128)
    assert merge(a, b).recipe == merge(b, a).recipe


@pytest.mark.parametrize(
    "other",
    [
        merge(expert("a", 32), expert("b", 128)),
        merge(dataclasses.replace(expert("a", 64), weight=0.5), expert("b", 128)),
        merge(expert("a", 64), expert("b", 128), method="dare"),
        merge(expert("a", 64), expert("b", 128), params={"density": 0.3, "scale": 1.0}),
        merge(expert("a", 64), expert("b", 128), base=dataclasses.replace(BASE, sha="c" * 40)),
    ],
)
def test_whatever_decides_the_bytes_decides_the_recipe(other: Manifest) -> None:
    assert other.recipe != merge(expert("a", 64), expert("b", 128)).recipe


def test_the_merge_of_the_last_steps_is_known_before_it_is_made() -> None:
    early, last = (
        merge(expert("a", 64), expert("b", 128)),
        merge(expert("a", 512), expert("b", 512)),
    )
    assert last_recipe(early) == last.recipe == last_recipe(last)
    assert last_recipe(merge(expert("a", 64, last=None), expert("b", 64))) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"kind": "expert"}',
        b'{"kind": "virus", "base": {"label": "x", "sha": "y", "digest": "z"}}',
        b'{"kind": "expert", "base": {"label": 1, "sha": "y", "digest": "z"}}',
        b'{"kind": "expert", "step": -1, "base": {"label": "x", "sha": "y", "digest": "z"}}',
        b'{"kind": "expert", "step": "9", "base": {"label": "x", "sha": "y", "digest": "z"}}',
        b'{"kind": "expert", "task": {}, "base": {"label": "x", "sha": "y", "digest": "z"}}',
        b'{"kind": "expert", "files": [], "base": {"label": "x", "sha": "y", "digest": "z"}}',
        b'{"kind": "expert", "validation": [1], "base": {"label": "x", "sha": "", "digest": ""}}',
        b'{"kind": "merge", "experts": [[]], "base": {"label": "x", "sha": "y", "digest": "z"}}',
        b'{"format": 99, "kind": "expert"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b"{" + b" " * 6_000_000 + b"}",
    ],
)
def test_what_is_no_manifest_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"owner/name@step1"):
        parse_manifest(data, "owner/name@step1")


def test_keys_of_a_later_minor_version_are_passed_over() -> None:
    said = json.loads(merge(expert("a", 64)).to_bytes())
    said["note"] = "new"
    assert parse_manifest(json.dumps(said).encode(), "here") == merge(expert("a", 64))
