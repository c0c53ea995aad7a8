"""One tiny model of each family, written once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models import worlds

MAKERS: dict[str, Callable[[Path], Any]] = {
    "bert": worlds.tiny_bert,
    "vit": worlds.tiny_vit,
    "clip": worlds.write_transformers,
    "t5": worlds.tiny_t5,
    "gpt2": worlds.tiny_gpt2,
    "llama": worlds.tiny_llama,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> its folder."""
    root = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        make(root / name)
    return {name: root / name for name in MAKERS}
