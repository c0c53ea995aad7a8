"""Methods and parameters by name, and what is said of the wrong ones."""

from __future__ import annotations

import re

import pytest

from hubmerge.errors import UnknownName, UsageError
from hubmerge.merging.params import DareParams, TiesParams
from hubmerge.merging.registry import METHODS, method, parse_params


def test_methods_are_what_the_card_will_say() -> None:
    assert list(METHODS) == ["average", "task_arithmetic", "ties", "dare"]
    for name, chosen in METHODS.items():
        assert chosen.name == name
        assert re.fullmatch(r"\d{4}\.\d{5}", chosen.arxiv)
        assert chosen.title
        assert chosen.summary.endswith(".")
        for field in chosen.params.model_fields.values():
            assert field.description, f"{name} has a parameter that nothing explains"


def test_unknown_method_has_near_names() -> None:
    with pytest.raises(UnknownName) as caught:
        method("tise")
    assert "ties" in caught.value.hint


def test_defaults_are_documented_ones() -> None:
    assert parse_params(method("ties"), {}) == TiesParams(
        density=0.2, scale=1.0, trim="model", scope="changed", sign="unweighted"
    )
    assert parse_params(method("dare"), {}) == DareParams(
        density=0.2, scale=1.0, rescale="expected", seed=0
    )


def test_text_becomes_numbers() -> None:
    params = parse_params(method("dare"), {"density": "0.5", "seed": "3", "rescale": "l1"})
    assert params == DareParams(density=0.5, seed=3, rescale="l1")


def test_all_problems_at_once_with_near_names() -> None:
    wrong = {"densty": "0.2", "density": "1.5", "sign": "majority", "scale": "big"}
    with pytest.raises(UsageError) as caught:
        parse_params(method("ties"), wrong)
    said = caught.value.message
    assert said.startswith("4 problems:")
    assert "Unknown parameter of ties 'densty'. Did you mean density?" in said
    assert "density='1.5': input should be less than or equal to 1." in said
    assert "sign='majority': input should be 'unweighted' or 'weighted'." in said
    assert "scale='big'" in said
    assert "hubmerge methods ties" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ties", {"density": "0"}),
        ("ties", {"density": "nan"}),
        ("ties", {"scale": "inf"}),
        ("ties", {"seed": "1"}),
        ("dare", {"seed": "-1"}),
        ("dare", {"seed": "0.5"}),
        ("average", {"scale": "1"}),
        ("ties", {"trim": "modle"}),
    ],
)
def test_out_of_range_is_refused(name: str, values: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        parse_params(method(name), values)


def test_parameters_cannot_change_under_a_plan() -> None:
    params = parse_params(method("ties"), {})
    with pytest.raises(ValueError, match="frozen"):
        params.density = 0.5  # type: ignore[attr-defined]
