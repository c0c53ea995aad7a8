"""hubmerge report for results of recipes: the page, the figures, the table, bad arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import Result

from hubmerge.results import RESULTS_JSON, write_results
from tests.command_line import run_command
from tests.reports.builders import by_bin, results


def report(*words: object) -> Result:
    return run_command("report", *words)


@pytest.fixture
def results_file(tmp_path: Path) -> Path:
    return write_results(tmp_path / "fft", results(charts=lambda: (by_bin(),)))


def test_a_file_and_a_folder_are_shown_on_one_page(results_file: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "lora", results("lora-vision")).parent
    result = report(results_file, other, "--out", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert "+2.6 points (+1.3 to +3.8)" in result.stdout
    assert f"Page: {tmp_path / 'r.html'}" in result.stderr
    page = (tmp_path / "r.html").read_text()
    assert 'id="fft-vision-mini"' in page
    assert 'id="lora-vision-mini"' in page


def test_each_recipe_has_a_folder_of_figures(results_file: Path, tmp_path: Path) -> None:
    result = report(results_file, "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "figures" / "fft-vision-mini").iterdir())
    assert names == ["forgotten.png", "forgotten.svg"]


def test_json_holds_claims_and_verdicts(results_file: Path) -> None:
    (data,) = json.loads(report(results_file, "--json").stdout)
    assert (data["recipe"], data["verdict"]) == ("fft-vision", "partly")
    claim = data["claims"][0]
    assert claim["values"] == [0.021, 0.031, 0.025]
    # t is 8.83 with two degrees of freedom, p 0.0063; Holm multiplies by three claims.
    assert claim["p_value"] == pytest.approx(0.0189, abs=1e-4)
    assert claim["interval"] == pytest.approx([0.0132, 0.0382], abs=1e-4)


def test_verdicts_of_a_file_are_computed_again(tmp_path: Path) -> None:
    edited = write_results(tmp_path / "edited", results(verdict="reproduced"))
    edited.write_text(edited.read_text().replace('"verdict": "partly"', '"verdict": "reproduced"'))
    smoke = write_results(tmp_path / "smoke", results("lora-vision", profile="smoke"))
    first, second = json.loads(report(edited, smoke, "--json").stdout)
    assert first["verdict"] == "partly"
    assert [claim["verdict"] for claim in first["claims"]] == [
        "reproduced", "partly", "not", "partly"
    ]  # fmt: skip
    assert {claim["verdict"] for claim in second["claims"]} == {second["verdict"]} == {"untested"}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("{results}", "demo/mnist"), 2, "one kind at a time"),
        (("{results}", "{results}"), 2, "more than once"),
        (("demo/mnist", "--figures", "{tmp}"), 2, "--figures is for results"),
        (("{results}", "--out", "{tmp}/a.png"), 2, "static Space"),
        (("{tmp}/none/results.json",), 1, "Run the recipe first"),
        (("{tmp}/bad.json",), 1, "does not hold the results of a recipe"),
    ],
)
def test_bad_arguments_give_a_message_and_a_hint(
    results_file: Path, tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    (tmp_path / "bad.json").write_text("{}")
    result = report(*(word.format(results=results_file, tmp=tmp_path) for word in words))
    assert result.exit_code == code, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_all_problems_are_reported_at_once(results_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    result = report(tmp_path / "bad.json", tmp_path / "gone" / RESULTS_JSON)
    assert result.exit_code == 1
    assert "2 problems" in result.stderr
