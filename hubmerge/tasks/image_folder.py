"""Images on disk as train/CLASS/NAME.png, the layout that `datasets` calls imagefolder.

Read by ourselves, as the library's own reader takes a class named "test tube" for the test split,
and numbers the classes of each split anew where one of them has no image.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import datasets

from hubmerge.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def read_image_folder(folder: Path, split: str) -> datasets.Dataset:
    """Columns `image` and `label` of one split, in name order; train's folders are the classes.

    Raises DataError for a split that is not there, or a class that train does not have.
    """
    for needed in ("train", split):
        if not (folder / needed).is_dir():
            raise DataError(f"There is no folder {folder / needed}.")
    classes = _folders(folder / "train")
    if strange := [name for name in _folders(folder / split) if name not in classes]:
        raise DataError(f"{folder / split / strange[0]} is a class that train does not have.")
    images = [path for name in classes for path in _images(folder / split / name)]
    labels = [classes.index(path.parent.name) for path in images]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    )
    return datasets.Dataset.from_dict(
        {"image": [str(path) for path in images], "label": labels}, features=features
    )


def _folders(folder: Path) -> list[str]:
    return _visible(path.name for path in folder.iterdir() if path.is_dir())


def _images(folder: Path) -> list[Path]:
    names = _visible(path.name for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    return [folder / name for name in names]


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("."))
