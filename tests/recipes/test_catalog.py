"""Every task file has the schema, and the paper's tasks as many names and templates as they had."""

from pathlib import Path
from typing import Any

import pytest
import yaml

CATALOG = Path(__file__).resolve().parents[2] / "hubmerge" / "tasks" / "catalog"
FILES = sorted(CATALOG.glob("*.yaml"))
MINI = [
    *("mini-fashion", "mini-greek", "mini-hebrew", "mini-housenum"),
    *("mini-kana", "mini-latin", "mini-mnist", "mini-texture"),
]

# Classes and templates, counted in the public code that first used them.
PAPER = {
    "cars": (196, 8),
    "dtd": (47, 8),
    "eurosat": (10, 3),
    "gtsrb": (43, 3),
    "mnist": (10, 1),
    "resisc45": (45, 18),
    "sun397": (397, 2),
    "svhn": (10, 1),
}
TASK_KEYS = ["name", "version", "title", "source", "licence", "metric", "data", "splits"]
TASK_KEYS += ["templates", "classes"]
PLACES = {"id", "path"}
DATA_KEYS = {"config", "revision", "files", "image", "label"}
CARVED = {"of": "train", "fraction": 0.1, "most": 5000, "seed": 0}


def read(name: str) -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load((CATALOG / f"{name}.yaml").read_text())
    return task


def test_the_catalog_is_complete() -> None:
    assert [file.stem for file in FILES] == sorted([*MINI, *PAPER])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_schema(file: Path) -> None:
    task = yaml.safe_load(file.read_text())
    assert list(task) == TASK_KEYS
    assert task["name"] == file.stem
    assert task["version"] == 1
    assert task["metric"] == "accuracy"
    assert all(isinstance(task[key], str) and task[key] for key in ("title", "source", "licence"))
    data, splits = task["data"], task["splits"]
    assert len(PLACES & set(data)) == 1
    assert {"image", "label"} <= set(data) <= PLACES | DATA_KEYS
    assert list(splits) == ["train", "validation", "test"]
    named = {split for split in splits.values() if isinstance(split, str)}
    assert set(data["files"]) == named


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_names_and_templates_are_usable(file: Path) -> None:
    task = yaml.safe_load(file.read_text())
    for group in (task["classes"], task["templates"]):
        # Unquoted, YAML reads "no" and "n" as answers and "0" as a number.
        assert all(isinstance(text, str) and text.strip() == text for text in group)
        assert len(set(group)) == len(group)
    assert all(template.count("{}") == 1 for template in task["templates"])
    assert max(map(len, file.read_text().splitlines())) <= 100


@pytest.mark.parametrize(("name", "counts"), PAPER.items(), ids=PAPER)
def test_paper_tasks(name: str, counts: tuple[int, int]) -> None:
    task = read(name)
    assert (len(task["classes"]), len(task["templates"])) == counts
    assert task["splits"] == {"train": "train", "validation": CARVED, "test": "test"}
    assert {key: type(value) for key, value in task["data"].items() if key in PLACES} == {"id": str}
    assert task["data"]["revision"] == "main"


@pytest.mark.parametrize("name", MINI)
def test_mini_tasks_point_at_files_that_exist(name: str) -> None:
    task = read(name)
    folder = CATALOG / task["data"]["path"]
    assert set(task["splits"].items()) == {(s, s) for s in ("train", "validation", "test")}
    assert all((folder / file).is_file() for file in task["data"]["files"].values())


def test_oddities_are_kept() -> None:
    signs = " ".join(read("gtsrb")["classes"])
    assert "horizonal" in signs
    assert "bicyle" in signs
    assert read("gtsrb")["templates"][0] == 'a zoomed in photo of a "{}" traffic sign.'
    assert read("svhn")["templates"] == read("mnist")["templates"]
    assert read("mnist")["templates"] == ['a photo of the number: "{}".']
    assert read("eurosat")["classes"][2] == "brushland or shrubland"
    assert read("eurosat")["templates"][0] == "a centered satellite photo of {}."
    assert read("resisc45")["templates"][0] == "satellite imagery of {}."
    assert read("cars")["templates"][3] == "i love my {}!"
