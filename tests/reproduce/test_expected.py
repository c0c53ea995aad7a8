"""Results are compared with expected.json, number by number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hubmerge.errors import DataError
from hubmerge.reproduce.expected import check_results, table_numbers, write_expected
from hubmerge.results import Cell, Claim, Paper, Provenance, Results, Table

TABLE = Table("accuracy", "Accuracy", ("step", "TIES"), (("64", Cell((0.70, 0.72))), ("8", "-")))
CLAIM = Claim("falls", "TIES falls.", (0.03, 0.05), "partly", p_value=0.0780)
RESULTS = Results(
    "fft", "mini", "Title", Paper("figure 1", "It falls."), {}, (), (), (TABLE,), (CLAIM,),
    "partly", "", Provenance("0", "c0de", {}, {"merge": 2}, 3.0),
)  # fmt: skip


def test_the_numbers_are_those_of_the_tables() -> None:
    assert list(table_numbers(RESULTS)) == [("accuracy / 64 / TIES", Cell((0.70, 0.72)))]


def test_the_same_results_are_within_their_bands(tmp_path: Path) -> None:
    assert check_results(RESULTS, write_expected(tmp_path, RESULTS)) == []


def test_a_number_beyond_three_standard_errors_is_reported(tmp_path: Path) -> None:
    path = write_expected(tmp_path, RESULTS)  # 0.71 with a standard error of 0.01
    near = replace(TABLE, rows=(("64", Cell((0.735, 0.735))),))
    far = replace(TABLE, rows=(("64", Cell((0.745, 0.745))),))
    assert check_results(replace(RESULTS, tables=(near,)), path) == []
    [results] = check_results(replace(RESULTS, tables=(far,)), path)
    assert results == "accuracy / 64 / TIES is 74.5, expected 71.0 ± 3.0."


def test_a_claim_with_another_verdict_is_reported(tmp_path: Path) -> None:
    path = write_expected(tmp_path, RESULTS)
    turned = replace(CLAIM, values=(-0.02, -0.04), verdict="not")
    results = check_results(replace(RESULTS, claims=(turned,)), path)
    assert results == [
        "claim 'falls' is -3.0, expected 4.0 ± 3.0.",
        "claim 'falls' is now 'not', expected partly or reproduced.",
    ]


def test_missing_numbers_and_claims_are_reported(tmp_path: Path) -> None:
    path = write_expected(tmp_path, RESULTS)
    results = check_results(replace(RESULTS, tables=(), claims=()), path)
    assert results == ["claim 'falls' was not measured.", "accuracy / 64 / TIES was not measured."]


def test_another_profile_is_not_compared(tmp_path: Path) -> None:
    path = write_expected(tmp_path, RESULTS)
    assert check_results(replace(RESULTS, profile="paper", tables=(), claims=()), path) == []


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1}'])
def test_an_invalid_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "expected.json").write_text(text)
    with pytest.raises(DataError, match="is not a file of expected results"):
        check_results(RESULTS, tmp_path / "expected.json")
