"""The spread of the demo over seeds: which runs are missing, and the table of the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubmerge.lock_file import parse_lock
from recipes.demo.spread import (
    SETS,
    describe_lock,
    mean_accuracies,
    read_lines,
    render_readme,
    render_table,
    run_all,
)

ROOT = Path(__file__).parents[2]


def make_line(seed: int, name: str, last: float, chosen: float, **changes: Any) -> dict[str, Any]:
    test = {"ties-last": last, "ties-uniform": 0.65, "ties-chosen": chosen, "tiny-clip": 0.53}
    return {"seed": seed, "set": name, "conclusive": True, "test": test, **changes}


def test_the_table_has_means_over_seeds_and_counts_what_agrees() -> None:
    lines = [
        make_line(0, "avx2", 0.60, 0.67),
        make_line(1, "avx2", 0.62, 0.61, conclusive=False),
        make_line(0, "default", 0.60, 0.66),
    ]
    # Gains of 7 and -1 points: mean 3, standard error 4.
    assert render_table(lines).splitlines()[2:] == [
        "| default | 1 | 60.0 | 65.0 | 66.0 | +6.0 | +6.0 | 1 of 1 | 1 of 1 |",
        "| avx2 | 2 | 61.0 ± 1.0 | 65.0 ± 0.0 | 64.0 ± 3.0 | +3.0 ± 4.0 | -1.0 | 1 of 2 | 1 of 2 |",
    ]


def test_without_runs_the_readme_names_the_command() -> None:
    page = "A <!-- demo:begin -->\nold\n<!-- demo:end --> Z"
    assert "Not run yet" in render_readme(page, [])
    assert render_readme(page, []).endswith(" Z")


def test_what_has_a_line_is_not_run_again(tmp_path: Path) -> None:
    lines = tmp_path / "spread.jsonl"
    done = [make_line(seed, name, 0.6, 0.67) for seed in (0, 1) for name in SETS]
    lines.write_text("".join(f"{json.dumps(line)}\n" for line in done))
    run_all([0, 1], list(SETS), lines, tmp_path)  # would fail: the folder is outside the repository
    assert read_lines(lines) == done


def test_a_line_has_what_the_lock_chose() -> None:
    path = ROOT / "model_cards" / "demo-ties-chosen" / "hubmerge.lock"
    lock = parse_lock(path.read_bytes(), str(path))
    line = json.loads(json.dumps(describe_lock(lock)))
    chosen = lock.pick()
    assert line["policy"] == lock.chosen
    assert line["conclusive"] is lock.conclusive
    assert line["steps"] == [expert.step for expert in chosen.experts]
    assert (len(line["steps"]), len(line["gain"])) == (4, 3)
    assert set(line["params"]) == {"scale", "density"}


def test_accuracies_are_means_over_tasks_by_the_name_of_a_model() -> None:
    scores = [
        {"label": "build/demo/ties-last", "value": 0.5},
        {"label": "build/demo/ties-last", "value": 0.7},
        {"label": "hubmerge/tiny-clip@ed8f88135325", "value": 0.4},
    ]
    assert mean_accuracies(scores) == {"ties-last": 0.6, "tiny-clip": 0.4}
