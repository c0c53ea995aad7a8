"""Methods and parameters by name, errors for invalid ones, and methods of other distributions."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubmerge.errors import UnknownName, UsageError
from hubmerge.merging.built_in import BUILT_IN
from hubmerge.merging.params import DareParams, TiesParams
from hubmerge.merging.registry import METHODS, MethodRegistry, method, parse_params


def test_built_in_methods_are_documented() -> None:
    assert list(METHODS)[:4] == ["average", "task_arithmetic", "ties", "dare"]
    for name, chosen in METHODS.items():
        assert chosen.name == name
        assert re.fullmatch(r"\d{4}\.\d{5}|", chosen.arxiv)
        assert chosen.title
        assert chosen.summary.endswith(".")
        for field in chosen.params.model_fields.values():
            assert field.description, f"{name} has a parameter without a description"


def test_unknown_method_gives_similar_names() -> None:
    with pytest.raises(UnknownName) as caught:
        method("tise")
    assert "ties" in caught.value.hint


def test_default_parameters() -> None:
    assert parse_params(method("ties"), {}) == TiesParams(
        density=0.2, scale=1.0, trim="model", scope="changed", sign="unweighted"
    )
    assert parse_params(method("dare"), {}) == DareParams(
        density=0.2, scale=1.0, rescale="expected", seed=0, masks=2
    )


def test_text_is_parsed() -> None:
    params = parse_params(method("dare"), {"density": "0.5", "seed": "3", "rescale": "l1"})
    assert params == DareParams(density=0.5, seed=3, rescale="l1")


def test_all_problems_are_reported_with_similar_names() -> None:
    wrong = {"densty": "0.2", "density": "1.5", "sign": "majority", "scale": "big"}
    with pytest.raises(UsageError) as caught:
        parse_params(method("ties"), wrong)
    message = caught.value.message
    assert message.startswith("4 problems:")
    assert "Unknown parameter of ties 'densty'. Did you mean density?" in message
    assert "density='1.5' must be at most 1." in message
    assert "sign='majority' must be 'unweighted' or 'weighted'." in message
    assert "scale='big'" in message
    assert "hubmerge methods ties" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ties", {"density": "0"}),
        ("ties", {"density": "nan"}),
        ("ties", {"scale": "inf"}),
        ("ties", {"seed": "1"}),
        ("dare", {"seed": "-1"}),
        ("dare", {"seed": "0.5"}),
        ("average", {"scale": "1"}),
        ("ties", {"trim": "modle"}),
    ],
)
def test_invalid_values_are_rejected(name: str, values: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        parse_params(method(name), values)


def test_parameters_are_frozen() -> None:
    params = parse_params(method("ties"), {})
    with pytest.raises(ValueError, match="frozen"):
        params.density = 0.5  # type: ignore[attr-defined]


# Methods of other distributions

MODULE = """
from hubmerge.merging.methods import average
from hubmerge.merging.params import NoParams
from hubmerge.merging.registry import Method

def make(name):
    return Method(name, "Mine", "2203.05482", "A mean.", NoParams, average)

mine, ties, moe = make("mine"), make("ties"), make("moe")
not_a_method = average
"""


def install(site: Path, distribution: str, module: str = MODULE, **entries: str) -> None:
    """Install a distribution of one module, with these entry points for its attributes."""
    name = distribution.replace("-", "_")
    (site / f"{name}.py").write_text(module)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{entry} = {name}:{attribute}" for entry, attribute in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[hubmerge.methods]", *lines]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for distributions, on the import path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("my_merges", "bad_merges", "a_merges", "b_merges"):
        sys.modules.pop(name, None)


def read_methods() -> MethodRegistry:
    """The methods as a new process would read them."""
    return MethodRegistry(BUILT_IN)


def test_distribution_adds_a_method(site: Path) -> None:
    install(site, "my-merges", mine="mine")
    methods = read_methods()
    assert list(methods) == [*METHODS, "mine"]
    assert methods["mine"].title == "Mine"
    assert methods.problems == ()


def test_method_is_loaded_only_when_it_is_looked_up(site: Path) -> None:
    install(site, "my-merges", "raise AssertionError", mine="mine")
    assert read_methods()["ties"].name == "ties"
    assert "my_merges" not in sys.modules


@pytest.mark.parametrize(
    ("module", "attribute", "reason"),
    [
        ("import no_such_module_of_mine", "mine", "cannot be loaded: ModuleNotFoundError: No mod"),
        ("raise RuntimeError('a\\x1b[31m')", "mine", r"cannot be loaded: RuntimeError: a\x1b[31m"),
        (MODULE, "gone", "cannot be loaded: AttributeError"),
        (MODULE, "not_a_method", "is not a hubmerge.merging.registry.Method."),
        (MODULE, "ties", "has another name in its Method: 'ties'."),
    ],
)
def test_unusable_method_gives_one_sentence(
    module: str, attribute: str, reason: str, site: Path
) -> None:
    install(site, "bad-merges", module, mine=attribute)
    methods = read_methods()
    with pytest.raises(UsageError) as caught:
        methods["mine"]
    sentence = f"Merge method 'mine' of the distribution bad-merges {reason}"
    assert caught.value.message.startswith(sentence)
    assert caught.value.message.isprintable()
    assert "bad-merges" in caught.value.hint
    assert methods.problems == (caught.value.message,)
    assert list(methods) == list(METHODS)


def test_names_that_are_taken_are_reported(site: Path) -> None:
    install(site, "a-merges", mine="mine", ties="ties", moe="moe")
    install(site, "b-merges", mine="mine")
    methods = read_methods()
    assert methods["ties"] is METHODS["ties"]
    assert list(methods) == [*METHODS, "mine"]
    assert methods.problems == (
        "Merge method 'ties' of the distribution a-merges is ignored: hubmerge has that name.",
        "Merge method 'moe' of the distribution a-merges is ignored: hubmerge has that name.",
        "Merge method 'mine' of the distribution b-merges is ignored: the distribution a-merges "
        "has that name.",
    )


def test_commands_with_methods_of_distributions(site: Path) -> None:
    """In a new process: listed, its parameters shown, a broken one reported, and no torch."""
    install(site, "my-merges", mine="mine")
    install(site, "bad-merges", "import no_such_module_of_mine", other="other")
    program = f"""
import sys
sys.path.insert(0, {str(site)!r})
sys.argv = ["hubmerge", *sys.argv[1:]]
from hubmerge.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
        )

    listing = run("methods")
    assert (listing.returncode, "mine" in listing.stdout) == (0, True)
    assert "Merge method 'other' of the distribution bad-merges cannot be loaded" in listing.stderr
    assert run("methods", "mine").returncode == 0
    broken = run("methods", "other")
    assert broken.returncode == 2
    assert "bad-merges cannot be loaded" in " ".join(broken.stderr.split())
    assert "Traceback" not in broken.stderr
