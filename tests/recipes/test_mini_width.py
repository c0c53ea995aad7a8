"""A base of another width differs from the shipped base only in its width."""

import json
from pathlib import Path

import pytest
import yaml

from recipes.assets.mini.pretrain import SHAPE, WIDTHS, new_model, shape_of

BASES = Path(__file__).resolve().parents[2] / "recipes" / "assets" / "model_scale_bases"


def test_width_64_has_the_shipped_config() -> None:
    assert shape_of(64) == json.loads(SHAPE.read_text())


@pytest.mark.parametrize("width", WIDTHS)
def test_only_the_width_and_the_number_of_text_heads_change(width: int) -> None:
    shape = shape_of(width)
    text = shape["model_cfg"]["text_cfg"]
    assert text["width"] == text["heads"] * 16 == shape["model_cfg"]["vision_cfg"]["width"] == width
    text |= {"width": 64, "heads": 4}
    shape["model_cfg"]["vision_cfg"]["width"] = 64
    assert shape == shape_of(64)


def test_the_parameters_of_width_32_worked_out_by_hand() -> None:
    model = new_model(shape_of(32)["model_cfg"], seed=0)
    # attention 4 w^2 + 4 w, MLP 8 w^2 + 5 w, two norms 4 w
    layer = 12 * 32**2 + 13 * 32
    norm = 2 * 32
    tokens = 3 * 7 * 7 * 32 + 32 + 17 * 32  # patches, the class token, the places of 16 + 1
    image = tokens + 4 * layer + 2 * norm + 32 * 64
    text = (880 + 20) * 32 + 2 * layer + norm + 32 * 64
    assert sum(p.numel() for p in model.visual.parameters()) == image == 58_272
    assert sum(p.numel() for p in model.parameters()) == image + text + 1 == 114_593


@pytest.mark.parametrize("width", WIDTHS)
def test_each_width_is_complete(width: int) -> None:
    folder = BASES / f"w{width}"
    assert json.loads((folder / "open_clip_config.json").read_text()) == shape_of(width)
    assert (folder / "bpe.txt.gz").is_file()
    front_matter = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front_matter["license"] == "apache-2.0"
    assert front_matter["library_name"] == "open_clip"


def test_the_widths_together_stay_small() -> None:
    assert sum(file.stat().st_size for file in BASES.rglob("*") if file.is_file()) < 10_000_000
