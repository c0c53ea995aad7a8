"""The script behind `make cards`: rendering a folder with a lock, and finding stale files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from hubmerge.errors import IntegrityError
from hubmerge.manifest import MANIFEST_JSON
from hubmerge.scores import ScoreLog
from tests.cards.builders import lock, merge, scores

SCRIPT = Path(__file__).parents[2] / "scripts" / "model_cards.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_cards", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / MANIFEST_JSON).write_bytes(merge().to_bytes())
    (tmp_path / "hubmerge.lock").write_bytes(lock().to_bytes())
    ScoreLog(tmp_path / "scores.jsonl").append(scores())
    return tmp_path


def test_rendering_a_folder_makes_it_up_to_date(script: ModuleType, folder: Path) -> None:
    files = ["README.md", "selection.csv", "curves.png", "heatmap.png"]
    assert script.stale_files(folder) == files
    script.write_files(folder)
    assert script.stale_files(folder) == []
    golden = Path(__file__).with_name("golden_merge.md").read_text()
    assert (folder / "README.md").read_text() == golden


def test_an_edited_card_is_stale(script: ModuleType, folder: Path) -> None:
    script.write_files(folder)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("75.00", "99.00"))
    (folder / "heatmap.png").unlink()
    assert script.stale_files(folder) == ["README.md", "heatmap.png"]


def test_a_different_lock_is_refused(script: ModuleType, folder: Path) -> None:
    (folder / "hubmerge.lock").write_bytes(lock(seed=1).to_bytes())
    with pytest.raises(IntegrityError, match="is not the lock in"):
        script.stale_files(folder)
