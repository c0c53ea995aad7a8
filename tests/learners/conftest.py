"""Folders with one tiny model of each family, written once for all tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models import builders

BUILDERS: dict[str, Callable[[Path], Any]] = {
    "bert": builders.tiny_bert,
    "vit": builders.tiny_vit,
    "clip": builders.write_transformers,
    "t5": builders.tiny_t5,
    "gpt2": builders.tiny_gpt2,
    "llama": builders.tiny_llama,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of its tiny model."""
    root = tmp_path_factory.mktemp("models")
    for name, write_model in BUILDERS.items():
        write_model(root / name)
    return {name: root / name for name in BUILDERS}
