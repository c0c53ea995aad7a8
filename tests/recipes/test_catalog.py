"""The task files: the schema of each kind, and the facts of the paper's tasks."""

from pathlib import Path
from typing import Any

import pytest
import yaml

CATALOG = Path(__file__).resolve().parents[2] / "hubmerge" / "tasks" / "catalog"
FILES = sorted(CATALOG.glob("*.yaml"))
MINI_IMAGE = [
    *("mini-fashion", "mini-greek", "mini-hebrew", "mini-housenum"),
    *("mini-kana", "mini-latin", "mini-mnist", "mini-texture"),
]
# Classes.
MINI_TEXT = {
    "mini-emoji": 9,
    "mini-movie": 2,
    "mini-noun": 25,
    "mini-source": 4,
    "mini-verb": 15,
}

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
# Data set and its configuration, the split to train on, the test split, and whether validation is
# carved from that: facts of arXiv 2306.01708's code. Story Cloze is available on request only.
PAPER_TEXT = {
    "paws": ("google-research-datasets/paws", "labeled_final", "train", "test", False),
    "qasc": ("allenai/qasc", None, "train", "validation", True),
    "quartz": ("allenai/quartz", None, "train", "test", False),
    "story_cloze": (None, None, "validation", "test", True),
    "wiki_qa": ("microsoft/wiki_qa", None, "train", "test", False),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "train", "validation", True),
    "wsc": ("aps/super_glue", "wsc.fixed", "train", "validation", True),
}
KINDS = {
    **dict.fromkeys([*MINI_IMAGE, *PAPER], "image"),
    **dict.fromkeys(MINI_TEXT, "text"),
    **dict.fromkeys(PAPER_TEXT, "rank"),
}
KEYS_BEFORE = ["title", "source", "licence", "metric", "data", "splits"]
KEYS = {
    "image": ["name", "version", *KEYS_BEFORE, "templates", "classes"],
    "text": ["name", "version", "kind", *KEYS_BEFORE, "max_tokens", "head", "templates", "classes"],
    "rank": ["name", "version", "kind", *KEYS_BEFORE, "max_tokens", "prompt", "choices", "answer"],
}
LOCATIONS = {"id", "path"}
DATA_KEYS = {"config", "revision", "files"}
COLUMNS = {"image": {"image", "label"}, "text": {"text", "label"}, "rank": set[str]()}
CARVED = {"of": "train", "fraction": 0.1, "most": 5000, "seed": 0}
CLASSIFY = [file for file in FILES if KINDS.get(file.stem) != "rank"]


def read(name: str) -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load((CATALOG / f"{name}.yaml").read_text())
    return task


def test_the_catalog_is_complete() -> None:
    assert [file.stem for file in FILES] == sorted(KINDS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_schema(file: Path) -> None:
    task, kind = yaml.safe_load(file.read_text()), KINDS[file.stem]
    assert list(task) == KEYS[kind]
    assert task.get("kind", "image") == kind
    assert task["name"] == file.stem
    assert task["version"] == 1
    assert task["metric"] == "accuracy"
    assert all(isinstance(task[key], str) and task[key] for key in ("title", "source", "licence"))
    data, splits = task["data"], task["splits"]
    assert len(LOCATIONS & set(data)) == 1
    assert COLUMNS[kind] <= set(data) <= LOCATIONS | DATA_KEYS | COLUMNS[kind]
    assert list(splits) == ["train", "validation", "test"]
    named = {split for split in splits.values() if isinstance(split, str)}
    assert set(data["files"]) == named
    assert max(map(len, file.read_text().splitlines())) <= 100


@pytest.mark.parametrize("file", CLASSIFY, ids=lambda file: file.stem)
def test_names_and_templates_are_valid(file: Path) -> None:
    task = yaml.safe_load(file.read_text())
    for group in (task["classes"], task["templates"]):
        # Unquoted, YAML reads "no" and "n" as answers and "0" as a number.
        assert all(isinstance(text, str) and text.strip() == text for text in group)
        assert len(set(group)) == len(group)
    assert all(template.count("{}") == 1 for template in task["templates"])


@pytest.mark.parametrize(("name", "counts"), PAPER.items(), ids=PAPER)
def test_paper_tasks(name: str, counts: tuple[int, int]) -> None:
    task = read(name)
    assert (len(task["classes"]), len(task["templates"])) == counts
    assert task["splits"] == {"train": "train", "validation": CARVED, "test": "test"}
    assert {key: type(value) for key, value in task["data"].items() if key in LOCATIONS} == {
        "id": str
    }
    assert task["data"]["revision"] == "main"


@pytest.mark.parametrize("name", PAPER_TEXT)
def test_language_tasks_of_the_paper(name: str) -> None:
    location, config, train, test, is_carved = PAPER_TEXT[name]
    task = read(name)
    data, splits = task["data"], task["splits"]
    assert (data.get("id"), data.get("config")) == (location, config)
    assert data.get("revision") == ("main" if location else None)
    assert config is None or all(file.startswith(f"{config}/") for file in data["files"].values())
    carved = {"of": test, "count": 32, "seed": 42, "order": "python"}
    expected = carved if is_carved else "validation"
    assert splits == {"train": train, "validation": expected, "test": test}
    assert task["max_tokens"] == 128


@pytest.mark.parametrize("name", PAPER_TEXT)
def test_a_prompt_comes_with_choices_and_an_answer(name: str) -> None:
    task = read(name)
    assert "{{" in task["prompt"]
    assert task["prompt"].strip()
    # Either the same words for every row, or an expression over its columns.
    choices = task["choices"]
    assert choices == ["No", "Yes"] or isinstance(choices, str)
    assert isinstance(task["answer"], str)


@pytest.mark.parametrize("name", [*MINI_IMAGE, *MINI_TEXT])
def test_mini_tasks_point_at_files_that_exist(name: str) -> None:
    task = read(name)
    folder = CATALOG / task["data"]["path"]
    assert set(task["splits"].items()) == {(s, s) for s in ("train", "validation", "test")}
    assert all((folder / file).is_file() for file in task["data"]["files"].values())


@pytest.mark.parametrize(("name", "classes"), MINI_TEXT.items(), ids=MINI_TEXT)
def test_mini_text_tasks_have_a_label_head(name: str, classes: int) -> None:
    task = read(name)
    assert (task["head"], task["max_tokens"]) == ("label", 32)
    assert (len(task["classes"]), len(task["templates"])) == (classes, 1)


def test_oddities_of_the_original_data_are_kept() -> None:
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
