"""Results as Markdown tables, and the page as a file or a Space."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hubmerge.errors import UsageError
from hubmerge.reports.markdown_tables import recipe_readme_block
from hubmerge.reports.space import write_page
from hubmerge.results import Cell, Table
from tests.reports.builders import HOSTILE, results


def test_the_claims_and_tables_of_a_recipe() -> None:
    lines = recipe_readme_block(results()).splitlines()
    assert lines[0].startswith("**◐ partly.** TA falls as in the paper")
    assert lines[2:5] == [
        "| the paper | ours (95 % interval) | p | verdict |",
        "| --- | ---: | ---: | --- |",
        "| Task arithmetic peaks before the last step. (paper: +2.9) "
        "| +2.6 points (+1.3 to +3.8) | 0.019 | ✓ reproduced |",
    ]
    assert lines[6].endswith(
        "(paper: more than 0) | -1.2 points (-2.7 to +0.3) | 0.961 | ✗ not reproduced |"
    )
    assert lines[9:14] == [
        "**Best uniform step**",
        "",
        "| method | step | best | last |",
        "| --- | ---: | ---: | ---: |",
        "| TA | 256 | 70.4 ± 0.2 | 67.0 ± 0.6 |",
    ]


def test_names_cannot_break_a_table() -> None:
    table = Table("t", HOSTILE, (HOSTILE, "b"), ((HOSTILE, Cell((0.5,))), ("a\nb", "|")))
    hostile = results(tables=(table,), explanation=HOSTILE, notes=("<!-- recipe:end -->",))
    block = recipe_readme_block(hostile)
    rows = [line for line in block.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows[-4:]} == {3}
    assert "<img" not in block
    assert "<!--" not in block
    assert "\x1b" not in block
    assert "| a\\\\nb | \\| |" in rows


def test_the_page_is_written_as_a_file_or_a_space(tmp_path: Path) -> None:
    assert write_page([results()], tmp_path / "new" / "a.html") == tmp_path / "new" / "a.html"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.html"]
    page = write_page([results()], tmp_path / "space")
    assert page.read_bytes() == (tmp_path / "new" / "a.html").read_bytes()
    metadata = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"]) == ("static", "index.html")
    assert write_page([results()], tmp_path / "space") == page  # it overwrites its own files


def test_another_readme_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# mine")
    with pytest.raises(UsageError, match="would be overwritten"):
        write_page([results()], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(UsageError, match=r"neither an \.html file nor a folder"):
        write_page([results()], tmp_path / "page.pdf")
