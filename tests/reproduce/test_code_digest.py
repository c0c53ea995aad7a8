"""The code digest: it changes with code that could change a result, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubmerge.reproduce.code_digest import code_version, measuring_files, package_digest

_FILE = '''"""What it is."""

class Loss:
    """Of a model."""

    def value(self, x):
        """Its value."""
        return x * 2  # twice
'''


def package(folder: Path, text: str = _FILE) -> Path:
    for place in ("training/loss.py", "reproduce/units/train.py", "cli/run.py", "cards/card.py"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(_FILE)
    (folder / "training/loss.py").write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        _FILE.replace("# twice", "# two times"),
        _FILE.replace("Its value.", "The value."),
        _FILE.replace('    """Of a model."""\n', ""),
        _FILE.replace("\n\n", "\n\n\n").replace("x * 2", "(x *\n            2)"),
    ],
    ids=["comment", "docstring", "no docstring", "layout"],
)
def test_comments_docstrings_and_layout_do_not_count(text: str, tmp_path: Path) -> None:
    assert package_digest(package(tmp_path / "a", text)) == package_digest(package(tmp_path / "b"))


@pytest.mark.parametrize(
    "text",
    [
        _FILE.replace("x * 2", "x * 3"),
        _FILE.replace("x * 2", "x * 2.0"),
        _FILE.replace("x * 2", "2 * x"),
        _FILE.replace("value(self, x)", "value(self, x=None)"),
        _FILE.replace("return x", 'x = "Its value."\n        return x'),
    ],
)
def test_code_counts(text: str, tmp_path: Path) -> None:
    assert package_digest(package(tmp_path / "a", text)) != package_digest(package(tmp_path / "b"))


def test_only_measuring_code_counts(tmp_path: Path) -> None:
    made = package(tmp_path)
    before = package_digest(made)
    (made / "cli/run.py").write_text("x = 1\n")
    (made / "cards/card.py").write_text("x = 1\n")
    (made / "reproduce/runner.py").write_text("x = 1\n")
    assert package_digest(made) == before
    (made / "reproduce/units/train.py").write_text("x = 1\n")
    assert package_digest(made) != before
    (made / "training/loss.py").rename(made / "training/losses.py")
    names = {path.relative_to(made).as_posix() for path in measuring_files(made)}
    assert names == {"reproduce/units/train.py", "training/losses.py"}


def test_the_code_version_is_computed_once() -> None:
    code_version.cache_clear()
    version = code_version()
    assert code_version() == version
    assert code_version.cache_info().misses == 1
    assert len(version) == 16
