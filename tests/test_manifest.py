from __future__ import annotations

import dataclasses
import json

import pytest

from hubmerge.errors import IntegrityError
from hubmerge.manifest import Manifest, parse_manifest, recipe_of_last_steps
from hubmerge.source import Source
from hubmerge.training_curve import ValidationPoint

BASE = Source("o/base@" + "b" * 40, "b" * 40, "d" * 64)


def expert(name: str, step: int, last: int | None = 512) -> Source:
    sha = f"{name}{step}".ljust(40, "0")
    last_sha = f"{name}{last}".ljust(40, "0") if last else None
    return Source(f"o/{name}@step{step}", sha, "e" * 64, step, name, 1.0, last, last_sha)


def merge(*experts: Source, **more: object) -> Manifest:
    params = {"density": 0.2, "scale": 1.0}
    fields = {"kind": "merge", "base": BASE, "experts": experts, "method": "ties", "params": params}
    return Manifest(**{**fields, **more})  # type: ignore[arg-type]


def test_a_manifest_is_read_as_it_was_written() -> None:
    manifest = merge(expert("a", 64), expert("b", 128)).with_files({"w.safetensors": "f" * 64})
    assert parse_manifest(manifest.to_bytes(), "here") == manifest
    assert parse_manifest(manifest.to_bytes(), "here").to_bytes() == manifest.to_bytes()


def test_the_manifest_of_a_mixture_of_experts() -> None:
    fields = {"kind": "moe", "method": "moe", "params": {"top_k": 2}, "step": 64, "run": "r"}
    early = merge(expert("a", 64), expert("b", 128), **fields)
    last = merge(expert("a", 512), expert("b", 512), **fields)
    assert parse_manifest(early.to_bytes(), "here") == early
    assert (early.noun, merge().noun) == ("mixture", "merge")
    assert recipe_of_last_steps(early) == last.recipe
    assert early.recipe != merge(*early.experts, method="moe", params={"top_k": 1}).recipe
    files = {"router.safetensors": "e" * 64, "experts/a/adapter_model.safetensors": "f" * 64}
    assert list(early.with_files(files).files) == sorted(files)


def test_a_recipe_does_not_depend_on_the_order_of_experts() -> None:
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
def test_all_inputs_of_a_merge_change_its_recipe(other: Manifest) -> None:
    assert other.recipe != merge(expert("a", 64), expert("b", 128)).recipe


def test_the_recipe_of_the_last_steps() -> None:
    early, last = (
        merge(expert("a", 64), expert("b", 128)),
        merge(expert("a", 512), expert("b", 512)),
    )
    assert recipe_of_last_steps(early) == last.recipe == recipe_of_last_steps(last)
    assert recipe_of_last_steps(merge(expert("a", 64, last=None), expert("b", 64))) is None


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
def test_an_invalid_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"owner/name@step1"):
        parse_manifest(data, "owner/name@step1")


def test_unknown_keys_are_ignored() -> None:
    fields = json.loads(merge(expert("a", 64)).to_bytes())
    fields["note"] = "new"
    assert parse_manifest(json.dumps(fields).encode(), "here") == merge(expert("a", 64))


def with_validation(*points: ValidationPoint) -> Manifest:
    return Manifest(kind="moe", base=BASE, validation=points)


def test_a_curve_of_one_task_has_no_tasks() -> None:
    (point,) = json.loads(with_validation(ValidationPoint(8, 1.25, 0.5, 400, 1e-5)).to_bytes())[
        "validation"
    ]
    assert point == {"step": 8, "loss": 1.25, "accuracy": 0.5, "count": 400, "lr": 1e-5}


def test_a_curve_of_several_tasks_has_each() -> None:
    manifest = with_validation(
        ValidationPoint(8, 1.25, 0.5, 400, 1e-5, {"cars": 0.25, "mini-mnist": 0.75})
    )
    (point,) = json.loads(manifest.to_bytes())["validation"]
    assert point["tasks"] == {"cars": 0.25, "mini-mnist": 0.75}
    assert parse_manifest(manifest.to_bytes(), "here") == manifest


@pytest.mark.parametrize(
    "tasks",
    ['{"cars": 1.5}', '{"cars": -0.1}', '{"cars": NaN}', '{"cars": "0.5"}', '{"a,b": 0.5}',
     '{"a\\n": 0.5}', '{"": 0.5}', '[0.5]', 'null'],
)  # fmt: skip
def test_invalid_tasks_of_a_point_are_refused(tasks: str) -> None:
    manifest = with_validation(ValidationPoint(8, 1.25, 0.5, 400, 1e-5, {"cars": 0.25}))
    text = manifest.to_bytes().decode()
    start, end = text.index('"tasks": {'), text.index("}", text.index('"tasks": {'))
    with pytest.raises(IntegrityError, match=r"validation\.0\.tasks"):
        parse_manifest(f'{text[:start]}"tasks": {tasks}{text[end + 1 :]}'.encode(), "here")
