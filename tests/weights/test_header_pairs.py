"""Pairs of base and expert as people publish them, as headers alone: which tensor is which.

scripts/header_pairs.py makes the descriptions in pairs/ from transformers.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.dtypes import DTYPES
from hubmerge.weights.full_match import match_full
from hubmerge.weights.match_options import MatchOptions
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("running_hub")

PAIRS = {
    path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "pairs").iterdir()
}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(name: str) -> Iterator[str]:
    """layers.{0..1}.norm -> layers.0.norm, layers.1.norm"""
    ranges = [range(int(a), int(b) + 1) for a, b in _RANGE.findall(name)]
    for numbers in itertools.product(*ranges):
        parts = iter(numbers)
        yield _RANGE.sub(lambda _, parts=parts: str(next(parts)), name)


def expand_pairs(names: Mapping[str, str]) -> dict[str, str]:
    return dict(
        pair for name, own in names.items() for pair in zip(expand(name), expand(own), strict=True)
    )


def write_headers(folder: Path, model: Mapping[str, Any]) -> Path:
    """A folder with this configuration and a file whose values are a hole in the disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model["config"]))
    header, position = {}, 0
    for template, (dtype, shape) in model["tensors"].items():
        for name in expand(template):
            end = position + prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
            position = end
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)
    return folder


def options_of(pair: Mapping[str, Any]) -> MatchOptions:
    words = iter(pair["options"])
    return MatchOptions(**{name.removeprefix("--"): next(words) for name in words})


@pytest.fixture(params=sorted(PAIRS))
def pair(request: pytest.FixtureRequest) -> Any:
    return PAIRS[request.param]


def test_which_tensor_is_which(pair: Any, tmp_path: Path) -> None:
    base, expert = (
        open_checkpoint(write_headers(tmp_path / name, pair[name])) for name in ("base", "expert")
    )
    match = match_full(base, expert, "me", options_of(pair))
    if "refused" in pair:
        tensor, option = pair["refused"]
        text = " ".join(itertools.chain(*match.problems))
        assert tensor in text
        assert option in text
        return
    assert match.problems == ()
    plan = pair["plan"]
    assert dict(match.names) == expand_pairs(plan["names"])
    assert sorted(match.kept) == sorted(itertools.chain(*map(expand, plan["kept"])))
    assert sorted(match.left_out) == sorted(itertools.chain(*map(expand, plan["left_out"])))
    # Nothing is dropped without being listed.
    assert {*match.names, *match.kept} == set(base.index)
    assert {*match.names.values(), *match.left_out} == set(expert.index)


def test_a_dry_run_tells_the_plan(pair: Any, tmp_path: Path) -> None:
    folders = [write_headers(tmp_path / name, pair[name]) for name in ("base", "expert")]
    words = ["merge", folders[1], "--base", folders[0], "--method", "average", "--dry-run",
             "--out", tmp_path / "out", *pair["options"]]  # fmt: skip
    done = run_command(*words)
    assert done.exit_code == int("refused" in pair), done.stderr
    assert not (tmp_path / "out").exists()
    if "refused" in pair:
        assert pair["refused"][1] in done.stderr
    elif pair["plan"]["kept"]:
        assert "the base's are kept" in done.stderr


def test_there_are_enough_of_them() -> None:
    assert len(PAIRS) >= 40
