"""Images on disk as train/CLASS/NAME.png or CLASS/NAME.png: what `datasets` calls imagefolder.

The library reads them, one split at a time: left to find the splits by itself it takes a class
named "test tube" for the test split, and numbers the classes of each split anew.
"""

from __future__ import annotations

from pathlib import Path

import datasets

from hubmerge.errors import DataError


def split_folder(folder: Path, split: str) -> Path:
    """Where the images of a split lie; without a train/, the whole folder is for training."""
    inner = folder / split
    return folder if split == "train" and not inner.is_dir() else inner


def read_image_folder(folder: Path, split: str) -> datasets.Dataset:
    """Columns `image` and `label` of one split; the folders of train are the classes, by name.

    Raises DataError for a split that is not there, or a class that train does not have.
    """
    place, train = split_folder(folder, split), split_folder(folder, "train")
    if not place.is_dir():
        raise DataError(f"There is no folder {place}.")
    classes = _classes(train)
    if empty := [name for name in classes if not any((train / name).iterdir())]:
        raise DataError(f"{train / empty[0]} is a class without an image.")
    if nested := [name for name in _classes(place) if _classes(place / name)]:
        raise DataError(f"{place / nested[0]} holds folders; images lie in their class's folder.")
    if strange := sorted(set(_classes(place)) - set(classes)):
        raise DataError(f"{place / strange[0]} is a class that train does not have.")
    label = datasets.ClassLabel(names=classes)
    return datasets.load_dataset(
        "imagefolder",
        data_files={split: str(place / "**")},
        split=split,
        features=datasets.Features({"image": datasets.Image(), "label": label}),
        drop_labels=False,
    )


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
