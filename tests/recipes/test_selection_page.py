"""The tables of docs/selection.md are those of the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.studies.selection import regret_tables, row_order, tables
from recipes.studies.selection.run import SETTINGS, Setting, find_setting


def test_the_tables_are_those_of_the_results() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.render_page(page) == page
    assert regret_tables.render_page(page) == page
    assert row_order.render_page(page) == page


def test_settings_that_were_measured_elsewhere_keep_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {
            "tune": "full",
            "method": "ties",
            "seed": seed,
            "part": "long",
            "policy": "long",
            "validation": 0.5,
        }
        for seed in (0, 1)
    ]
    monkeypatch.setattr(regret_tables, "RESULTS", tmp_path / "all.json")
    monkeypatch.setattr(regret_tables, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("nothing")
    for number, row in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "one.json").write_text(json.dumps([row]))
        regret_tables.write_page(folder)
    assert json.loads((tmp_path / "all.json").read_text()) == rows
    (tmp_path / "1" / "one.json").write_text(json.dumps([{**rows[1], "validation": 0.6}]))
    regret_tables.write_page(tmp_path / "1")
    assert json.loads((tmp_path / "all.json").read_text())[1]["validation"] == 0.6


def test_settings_are_found_by_name_whatever_the_seed() -> None:
    assert all(find_setting(setting.name) == setting for setting in SETTINGS)
    assert find_setting("four-full-seed12") == Setting("four", "full", 12)
    with pytest.raises(SystemExit, match="write one such as four-full-seed0"):
        find_setting("four-full")
