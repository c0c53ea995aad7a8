"""Images on disk as train/CLASS/NAME.png or CLASS/NAME.png: the `imagefolder` of `datasets`.

Each split is read separately. If `datasets` detected the splits, it would take a class named "test
tube" for the test split, and would number the classes of each split separately.
"""

from __future__ import annotations

from pathlib import Path

import datasets

from hubmerge.errors import DataError


def split_folder(folder: Path, split: str) -> Path:
    """The folder with the images of a split; without train/, that of train is `folder` itself."""
    subfolder = folder / split
    return folder if split == "train" and not subfolder.is_dir() else subfolder


def read_image_folder(folder: Path, split: str) -> datasets.Dataset:
    """Columns `image` and `label` of one split; the classes are the sorted folder names of train.

    Raises DataError if the split does not exist, or has a class that train does not have.
    """
    images, train = split_folder(folder, split), split_folder(folder, "train")
    if not images.is_dir():
        raise DataError(f"There is no folder {images}.")
    classes = _classes(train)
    if empty := [name for name in classes if not any((train / name).iterdir())]:
        raise DataError(f"{train / empty[0]} is a class without images.")
    if nested := [name for name in _classes(images) if _classes(images / name)]:
        raise DataError(
            f"{images / nested[0]} contains folders.", "Put all images of a class in its folder."
        )
    if unknown := sorted(set(_classes(images)) - set(classes)):
        raise DataError(f"{images / unknown[0]} is a class that train does not have.")
    label = datasets.ClassLabel(names=classes)
    return datasets.load_dataset(
        "imagefolder",
        data_files={split: str(images / "**")},
        split=split,
        features=datasets.Features({"image": datasets.Image(), "label": label}),
        drop_labels=False,
    )


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
