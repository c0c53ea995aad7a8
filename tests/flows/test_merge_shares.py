"""What --set says of each expert: into the plan, the manifest and its recipe, or why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hubmerge.errors import UsageError
from hubmerge.flows.merge import MergeRequest, Prepared, prepare
from hubmerge.hub.client import Hub
from hubmerge.refs import parse_ref
from tests.weights.adapters import put_base

Merging = Callable[..., Prepared]


@pytest.fixture
def merging(tmp_path: Path) -> Merging:
    """Two local experts; the Hub is not there and is not asked."""
    folders = [
        put_base(tmp_path / name, {"w": np.full((2, 2), value, np.float32)}).folder
        for value, name in enumerate(("base", "a", "b"))
    ]
    base, *experts = [parse_ref(str(folder)) for folder in folders]

    def prepared(**settings: str) -> Prepared:
        request = MergeRequest(tuple(experts), "average", settings, base)
        nowhere = Hub("http://127.0.0.1:9", "", tmp_path / "cache", "no Hub", deadline_s=1.0)
        return prepare(nowhere, request, tmp_path / "merges")

    return prepared


def test_one_number_for_all_or_one_each(merging: Merging) -> None:
    prepared = merging(weight="1,0.5", keep="0.3", intruders="0,1")
    shares = [(1.0, 0.3, 0.0), (0.5, 0.3, 1.0)]
    for found in (prepared.plan.experts, prepared.manifest.experts):
        assert [(one.weight, one.keep, one.intruders) for one in found] == shares
    assert "--set intruders=0,1 --set keep=0.3 --set weight=1,0.5" in prepared.manifest.command


def test_what_is_left_at_one_goes_unsaid_in_the_recipe(merging: Merging) -> None:
    plain = merging().manifest.recipe
    assert merging(keep="1", intruders="1,1").manifest.recipe == plain
    assert (
        len({plain, *(merging(**{n: "0.5"}).manifest.recipe for n in ("keep", "intruders"))}) == 3
    )


def test_all_that_is_wrong_at_once(merging: Merging) -> None:
    with pytest.raises(UsageError) as caught:
        merging(weight="1,x", keep="0.1,0.2,1.5", intruders="-1")
    assert caught.value.message.splitlines()[1:] == [
        "  - weight=1,x is not a list of numbers.",
        "  - keep=0.1,0.2,1.5 gives 3 numbers for 2 experts.",
        "  - keep=0.1,0.2,1.5 is not above 0 and at most 1.",
        "  - intruders=-1 is not from 0 to 1.",
    ]
    assert "one for each, in their order" in caught.value.hint


@pytest.mark.parametrize(
    "wrong", [{"keep": "0"}, {"keep": "nan"}, {"intruders": "1.01"}, {"weight": "inf"}]
)
def test_out_of_range_is_refused(wrong: dict[str, str], merging: Merging) -> None:
    with pytest.raises(UsageError, match="is not "):
        merging(**wrong)
