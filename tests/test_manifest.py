from __future__ import annotations

import dataclasses
import json

import pytest

from hubmerge.errors import IntegrityError
from hubmerge.manifest import Manifest, Point, Source, last_recipe, parse_manifest

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


def test_a_mixture_has_a_manifest_as_well() -> None:
    said = {"kind": "moe", "method": "moe", "params": {"top_k": 2}, "step": 64, "run": "r"}
    early = merge(expert("a", 64), expert("b", 128), **said)
    last = merge(expert("a", 512), expert("b", 512), **said)
    assert parse_manifest(early.to_bytes(), "here") == early
    assert (early.noun, merge().noun) == ("mixture", "merge")
    assert last_recipe(early) == last.recipe
    assert early.recipe != merge(*early.experts, method="moe", params={"top_k": 1}).recipe
    files = {"router.safetensors": "e" * 64, "experts/a/adapter_model.safetensors": "f" * 64}
    assert list(early.with_files(files).files) == sorted(files)


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


def validated(*points: Point) -> Manifest:
    return Manifest(kind="moe", base=BASE, validation=points)


def test_a_curve_of_one_task_is_told_as_it_always_was() -> None:
    (said,) = json.loads(validated(Point(8, 1.25, 0.5, 400, 1e-5)).to_bytes())["validation"]
    assert said == {"step": 8, "loss": 1.25, "accuracy": 0.5, "count": 400, "lr": 1e-5}


def test_a_curve_of_several_tasks_tells_each() -> None:
    manifest = validated(Point(8, 1.25, 0.5, 400, 1e-5, {"cars": 0.25, "mini-mnist": 0.75}))
    (said,) = json.loads(manifest.to_bytes())["validation"]
    assert said["tasks"] == {"cars": 0.25, "mini-mnist": 0.75}
    assert parse_manifest(manifest.to_bytes(), "here") == manifest


@pytest.mark.parametrize(
    "tasks",
    ['{"cars": 1.5}', '{"cars": -0.1}', '{"cars": NaN}', '{"cars": "0.5"}', '{"a,b": 0.5}',
     '{"a\\n": 0.5}', '{"": 0.5}', '[0.5]', 'null'],
)  # fmt: skip
def test_tasks_of_a_point_are_names_and_shares(tasks: str) -> None:
    point = validated(Point(8, 1.25, 0.5, 400, 1e-5, {"cars": 0.25})).to_bytes().decode()
    start, end = point.index('"tasks": {'), point.index("}", point.index('"tasks": {'))
    with pytest.raises(IntegrityError, match=r"validation\.0\.tasks"):
        parse_manifest(f'{point[:start]}"tasks": {tasks}{point[end + 1 :]}'.encode(), "here")
