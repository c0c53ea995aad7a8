"""A recipe that runs in seconds: two tasks, two seeds, eight steps, only averages."""

from __future__ import annotations

from pathlib import Path

_SETTING = """
  base: hubmerge/tiny-clip
  tasks: [mini-mnist, mini-texture]
  seeds: [0, 1]
  last: 8
  steps: [2, 8]
  train: {batch: 8}
  estimate: {seconds_per_step: 0.5, seconds_per_merge: 4, bytes_per_step: 1.0e+6}
"""
_SUITE = f"smoke:\n  hub: local{_SETTING}paper:{_SETTING}"
_RECIPE = """
title: Averages against steps
suite: small
where: figure 1
statement: Averages get worse.
measures: [{of: merges, methods: [average]}]
charts: [{name: accuracy, title: Accuracy, where: {of: merges}}]
tables: [{name: accuracy, title: Accuracy, where: {of: merges}}]
claims:
  - name: it falls
    statement: Averages are better at their best step than at the last.
    a: {of: merges, at: best}
    b: {of: merges, at: last}
    paper: "+2.0"
"""


def write_recipes(folder: Path) -> Path:
    """Write two recipes of one suite into a folder; both measure the same."""
    for name in ("falling", "other"):
        (folder / name).mkdir(parents=True)
        (folder / name / "recipe.yaml").write_text(_RECIPE)
    (folder / "suites").mkdir()
    (folder / "suites" / "small.yaml").write_text(_SUITE)
    return folder
