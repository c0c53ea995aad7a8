"""Grey images with more than 8 bits keep their greys: PNG and TIFF, integers and floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hubmerge.errors import DataError
from hubmerge.specs import TaskSpec
from hubmerge.specs.parsing import validate_spec
from hubmerge.tasks.check import check_task
from hubmerge.tasks.data import load_split
from hubmerge.tasks.image_values import to_8_bit
from hubmerge.tasks.task import Task


def grey(values: Any, dtype: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def write_classes(folder: Path, values: list[int], suffix: str, dtype: Any = np.uint16) -> None:
    """Twenty images of two classes, one pixel for each value."""
    for label in ("clear", "opaque"):
        for number in range(20):
            path = folder / label / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey([*values, number], dtype).save(path)


def image_task(folder: Path, **data: Any) -> Task:
    values = {"name": "rays", "kind": "image", "data": {"path": folder, **data}}
    splits = {"validation": {"of": "train"}, "test": {"of": "train"}}
    return Task(validate_spec(TaskSpec, {**values, "splits": splits}, "rays"), folder)


@pytest.mark.parametrize(("values", "dtype", "value_range", "expected"), [
    ([0, 257, 32896, 65535], np.uint16, None, [0, 1, 128, 255]),
    ([0, 257, 32896, 65535], np.int32, None, [0, 1, 128, 255]),
    ([0, 2048, 4095, 9000], np.uint16, (0, 4095), [0, 128, 255, 255]),
    ([-1000, 0, 1000], np.int32, (-1000, 1000), [0, 128, 255]),
    ([0, 0.5, 1], np.float32, None, [0, 128, 255]),
    ([0, 2.5, 10], np.float32, (0, 10), [0, 64, 255]),
])  # fmt: skip
def test_values_are_scaled(values: Any, dtype: Any, value_range: Any, expected: list[int]) -> None:
    image = to_8_bit(grey(values, dtype), value_range, "row 0")
    assert image.mode == "L"
    assert np.asarray(image)[0].tolist() == expected


def test_images_of_8_bits_stay_as_they_are() -> None:
    for mode in ("L", "RGB", "RGBA", "P", "1", "CMYK"):
        image = Image.new(mode, (2, 2))
        assert to_8_bit(image, (0, 100), "row 0") is image


@pytest.mark.parametrize(("values", "dtype", "message"), [
    ([0, 70000], np.int32, "values from 0 to 70000, and without a range they are from 0 to 65535"),
    ([-5, 1], np.int32, "values from -5 to 1"),
    ([0, 200], np.float32, "values from 0 to 200, and without a range they are from 0 to 1"),
    ([0, np.nan], np.float32, "values that are not finite"),
])  # fmt: skip
def test_values_of_an_unknown_range_are_refused(values: Any, dtype: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_8_bit(grey(values, dtype), None, "train row 3")


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_a_folder_of_16_bit_images_keeps_its_greys(tmp_path: Path, suffix: str) -> None:
    write_classes(tmp_path, [0, 32896, 65535], suffix)
    image, _ = load_split(image_task(tmp_path), "train").example(0)
    assert np.asarray(image)[0, :3].tolist() == [0, 128, 255]


def test_dark_images_are_noted_and_a_range_mends_them(tmp_path: Path) -> None:
    write_classes(tmp_path, [0, 4000], ".png")
    notes = check_task(image_task(tmp_path)).notes
    assert any("brightest value of the tried images is 4000 of 65535" in note for note in notes)
    scaled = image_task(tmp_path, range=[0, 4000])
    assert not any("brightest" in note for note in check_task(scaled).notes)
    assert scaled.digest != image_task(tmp_path).digest
    image, _ = load_split(scaled, "train").example(0)
    assert np.asarray(image)[0, 1] == 255


def test_a_wrong_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="black must be below"):
        image_task(tmp_path, range=[5, 5])


def test_a_range_is_for_images(tmp_path: Path) -> None:
    data = {"path": tmp_path, "range": [0, 10]}
    with pytest.raises(Exception, match="`range` of the data is for kind image, not text"):
        validate_spec(TaskSpec, {"name": "own", "kind": "text", "data": data}, "own")
