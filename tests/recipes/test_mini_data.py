"""The shipped image files agree with their task files and with the programs that draw them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from recipes.assets.mini.domains import FASHION, MNIST, TASKS, TEXTURE, Domain
from recipes.assets.mini.rows import TEST, TRAIN, VALIDATION, Split, draw_rows
from recipes.assets.mini.scripts import CHARACTERS
from recipes.assets.mini.textures import PATTERNS, draw_texture

MINI = Path(__file__).resolve().parents[2] / "hubmerge" / "mini"
CATALOG = MINI.parent / "tasks" / "catalog"
SPLITS = (TRAIN, VALIDATION, TEST)


def table_of(domain: Domain, split: Split) -> pa.Table:
    data = yaml.safe_load((CATALOG / f"{domain.name}.yaml").read_text())["data"]
    return pq.read_table(CATALOG / data["path"] / data["files"][split.name])


def image_of(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["bytes"]))


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
@pytest.mark.parametrize("domain", TASKS, ids=lambda domain: domain.name)
def test_columns_counts_and_class_names(domain: Domain, split: Split) -> None:
    table = table_of(domain, split)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    task = yaml.safe_load((CATALOG / f"{domain.name}.yaml").read_text())
    assert (
        table.column_names == ["image", "label"] == [task["data"]["image"], task["data"]["label"]]
    )
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": task["classes"]}
    assert len(table) == split.count
    assert set(table["label"].to_pylist()) == set(range(len(task["classes"])))
    image = image_of(table["image"][0].as_py())
    assert (image.size, image.mode, image.format) == ((28, 28), "L", "PNG")


@pytest.mark.parametrize("domain", TASKS, ids=lambda domain: domain.name)
def test_no_image_is_in_two_splits(domain: Domain) -> None:
    packed = [{row["bytes"] for row in table_of(domain, s)["image"].to_pylist()} for s in SPLITS]
    assert not packed[0] & packed[1]
    assert not (packed[0] | packed[1]) & packed[2]


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_textures_are_drawn_again_pixel_for_pixel(split: Split) -> None:
    drawn = draw_rows(TEXTURE, split, draw_texture, most=30)
    shipped = table_of(TEXTURE, split).slice(0, 30)
    assert shipped["label"].to_pylist() == drawn.labels.tolist()
    for row, image in zip(shipped["image"].to_pylist(), drawn.images, strict=True):
        np.testing.assert_array_equal(np.asarray(image_of(row)), image)


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
@pytest.mark.parametrize("domain", sorted(set(TASKS) - {MNIST, FASHION}, key=lambda d: d.number))
def test_labels_come_from_the_seed(domain: Domain, split: Split) -> None:
    blank = np.zeros((28, 28), np.uint8)
    drawn = draw_rows(domain, split, lambda rng, label: blank)
    assert table_of(domain, split)["label"].to_pylist() == drawn.labels.tolist()


def test_every_class_can_be_drawn() -> None:
    assert len(PATTERNS) == len(TEXTURE.classes)
    for domain in TASKS:
        for script in domain.scripts:
            # hiragana has one character more than the task has names: see scripts.py
            assert len(CHARACTERS[script]) - len(domain.classes) == (script == "hiragana")


def test_the_base_is_complete() -> None:
    config = json.loads((MINI / "base" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["size"] == [28, 28]
    assert config["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert config["preprocess_cfg"]["std"] == [0.25, 0.25, 0.25]
    card = (MINI / "base" / "README.md").read_text()
    front_matter = yaml.safe_load(card.split("---")[1])
    assert front_matter["license"] == "apache-2.0"
    assert front_matter["library_name"] == "open_clip"
    assert front_matter["pipeline_tag"] == "zero-shot-image-classification"
    assert (MINI / "base" / "open_clip_model.safetensors").stat().st_size < 2_000_000
    assert (MINI / "base" / "bpe.txt.gz").is_file()
