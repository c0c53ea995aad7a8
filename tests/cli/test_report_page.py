"""hubmerge report of recipes' results: the page, figures, a table; one kind at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hubmerge.cli.app import app
from hubmerge.results import NAME, write_results
from tests.reports.worlds import by_bin, results


def report(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)], env={"HUBMERGE_HUB": "local"})


@pytest.fixture
def found(tmp_path: Path) -> Path:
    return write_results(tmp_path / "fft", results(charts=lambda: (by_bin(),)))


def test_a_file_and_a_folder_become_one_page(found: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "lora", results("lora-vision")).parent
    said = report(found, other, "--out", tmp_path / "r.html")
    assert said.exit_code == 0, said.output
    assert "+2.6 ± 0.3 points" in said.stdout
    assert f"Page: {tmp_path / 'r.html'}" in said.stderr
    page = (tmp_path / "r.html").read_text()
    assert 'id="fft-vision-mini"' in page
    assert 'id="lora-vision-mini"' in page


def test_figures_have_a_folder_each_recipe(found: Path, tmp_path: Path) -> None:
    said = report(found, "--figures", tmp_path / "figures")
    assert said.exit_code == 0, said.output
    drawn = sorted(path.name for path in (tmp_path / "figures" / "fft-vision-mini").iterdir())
    assert drawn == ["forgotten.png", "forgotten.svg"]


def test_as_data(found: Path) -> None:
    (told,) = json.loads(report(found, "--json").stdout)
    assert (told["recipe"], told["verdict"]) == ("fft-vision", "partly")
    assert told["claims"][0]["values"] == [0.021, 0.031, 0.025]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("{found}", "demo/mnist"), 2, "one kind at a time"),
        (("{found}", "{found}"), 2, "more than once"),
        (("demo/mnist", "--figures", "{tmp}"), 2, "--figures goes with results"),
        (("{found}", "--out", "{tmp}/a.png"), 2, "static Space"),
        (("{tmp}/none/results.json",), 1, "Run the recipe first"),
        (("{tmp}/bad.json",), 1, "holds no results of a recipe"),
    ],
)
def test_one_sentence_and_a_way_out(
    found: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "bad.json").write_text("{}")
    answer = report(*(word.format(found=found, tmp=tmp_path) for word in words))
    assert answer.exit_code == code, answer.output
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_all_problems_at_once(found: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    answer = report(tmp_path / "bad.json", tmp_path / "gone" / NAME)
    assert answer.exit_code == 1
    assert "2 problems" in answer.stderr
