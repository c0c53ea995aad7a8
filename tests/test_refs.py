from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import UsageError
from hubmerge.refs import (
    ModelRef,
    Revision,
    check_inner_path,
    check_label,
    check_repo_id,
    check_revision,
    is_pinned_name,
    ordinal_of,
    parse_ref,
    parse_step_pattern,
    printable,
    series_of,
    step_of,
    step_tag,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ModelRef("owner/name")),
        ("owner/name@step64", ModelRef("owner/name", revision="step64")),
        ("owner/name@refs/pr/1", ModelRef("owner/name", revision="refs/pr/1")),
        ("hf://owner/name@step64", ModelRef("owner/name", revision="step64")),
        ("hf://models/owner/name", ModelRef("owner/name")),
        (
            "hf://owner/name@main/checkpoint-8",
            ModelRef("owner/name", revision="main", subfolder="checkpoint-8"),
        ),
        ("hf://owner/name@a%2Fb/c", ModelRef("owner/name", revision="a/b", subfolder="c")),
        ("https://huggingface.co/owner/name", ModelRef("owner/name")),
        (
            "https://huggingface.co/owner/name/tree/step8",
            ModelRef("owner/name", revision="step8"),
        ),
        ("./runs/checkpoint-256", ModelRef(path=Path("runs/checkpoint-256"))),
        ("/data/model", ModelRef(path=Path("/data/model"))),
    ],
)
def test_a_reference_is_parsed(text: str, expected: ModelRef) -> None:
    assert parse_ref(text) == expected


@pytest.mark.parametrize(
    "text", ["owner/name", "owner/name@step64", "hf://owner/name@a%2Fb/c", "/data/model", "./a/b"]
)
def test_a_reference_prints_as_it_was_written(text: str) -> None:
    assert str(parse_ref(text)) == text
    assert parse_ref(str(parse_ref(text))) == parse_ref(text)


def test_a_pinned_name_has_a_revision_and_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b@c").mkdir(parents=True)
    assert is_pinned_name("owner/name@step64")
    assert is_pinned_name("owner/name@a/b")
    others = ("a/b@c", "owner/name", "a/b/c@d", "hf://datasets/owner/name@main", "x.yaml", "../a@b")
    assert not any(map(is_pinned_name, others))


def test_a_folder_that_exists_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "merged").mkdir(parents=True)
    assert parse_ref("out/merged").is_local
    assert not parse_ref("out/other").is_local


INVALID = [
    "",
    "name",
    "owner/",
    "/../etc",
    "../owner/name/..",
    "owner/name/extra",
    "owner/../name",
    "owner/na..me",
    "owner/name.git",
    "-rf/name",
    "owner/--config=x",
    "owner/name\x00",
    "owner/na\nme",
    "owner/\x1b[31mred",
    "owner/\u202ename",
    "owner/name\u200b",
    "öwner/name",
    "owner\\name",
    "C:\\x",
    "\\\\host\\share",
    "owner/%2e%2e",
    ".owner/name",
    "owner/" + "n" * 300,
    "owner/name;rm",
    "owner/<script>",
]


@pytest.mark.parametrize("text", [text for text in INVALID if not text.startswith(("/", "."))])
def test_an_invalid_repository_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        check_repo_id(parse_ref(text).name)
    assert error.value.message.isprintable()
    assert len(error.value.message) < 500


@pytest.mark.parametrize(
    "text", ["", "..", "a/../b", "-x", "a b", "a\x00", ".hidden", "a.lock", "a//b"]
)
def test_an_invalid_revision_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_revision(text)
    with pytest.raises(UsageError):
        parse_ref(f"owner/name@{text}")


@pytest.mark.parametrize("text", ["../x", "/etc/passwd", "a/../b", "a\\b", "-rf", "a//b", "a\x1b"])
def test_a_path_that_leaves_its_repository_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_inner_path(text)


@given(st.text(max_size=300))
def test_accepted_names_are_safe_as_paths(text: str) -> None:
    for check in (check_repo_id, check_revision, check_inner_path):
        try:
            name = check(text)
        except UsageError:
            continue
        assert name.isprintable()
        hidden = (
            () if check is check_inner_path else (".",)
        )  # every repository has a .gitattributes
        assert not name.startswith(("/", "-", *hidden))
        assert ".." not in name.split("/")


@given(st.text(max_size=300))
def test_a_label_has_no_special_characters(text: str) -> None:
    with suppress(UsageError):
        assert set(check_label(text, "task")).isdisjoint("/\\<>|&\"' \n")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step64", 64),
        ("step-000125", 125),
        ("global_step1000", 1000),
        ("stage1-step140000-tokens294B", 140000),
        ("step1000-tokens4B", 1000),
        ("checkpoint-256", 256),
        ("runs/checkpoint-8", 8),
        ("extension_step0001220", 1220),
        ("iter_0010000", 10000),
        ("iter-5000", 5000),
        ("step_20k", 20000),
        ("main-step1k", 1000),
        ("step1.5M", 1_500_000),
        ("step1.5", None),
        ("update_1000", 1000),
        ("batch-1000", 1000),
        ("1000", 1000),
        ("checkpoint-1000step", 1000),
        ("1000steps", 1000),
        ("1000x", None),
        ("epoch-3", None),
        ("tokens-4B", None),
        ("main", None),
        ("v1.0", None),
        ("ckpt_356", None),
        ("checkpoint-best", None),
        ("footstep3", None),
        ("step٣", None),
    ],
)
def test_the_step_in_a_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("step64", ""),
        ("global_step1000", ""),
        ("step1000-tokens4B", ""),
        ("stage1-step140000-tokens294B", "stage1"),
        ("stage2-ingredient3-step23852-tokens51B", "stage2-ingredient3"),
        ("stage1-step-40000", "stage1"),
        ("extension_step0001220", "extension"),
        ("sft-step-000000100", "sft"),
        ("step5-ema", "ema"),
        ("checkpoint-8", ""),
    ],
)
def test_the_series_of_a_step(name: str, series: str) -> None:
    assert series_of(name) == series


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [
        ("ckpt_356", 356),
        ("CrystalCoder_phase1_checkpoint_055500", 55500),
        ("checkpoint-8", None),
        ("step8", None),
        ("stage1-ckpt_3", 3),
        ("epoch-3", 3),
        ("tokens-4B", 4_000_000_000),
        ("ckpt", None),
        ("main", None),
        ("ckpt_٣", None),
    ],
)
def test_the_number_of_a_checkpoint_in_a_name(name: str, ordinal: int | None) -> None:
    assert ordinal_of(name) == ordinal


@given(st.text(max_size=100))
def test_a_name_has_a_step_or_a_checkpoint_number_or_neither(name: str) -> None:
    assert step_of(name) is None or ordinal_of(name) is None
    assert len(series_of(name)) <= len(name) + 1


@given(st.integers(min_value=0, max_value=10**11))
def test_a_step_tag_contains_its_step(step: int) -> None:
    assert step_of(step_tag(step)) == step


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "not a regular expression"), (r"\d+", "0 groups"), (r"(\d)(\d)", "2 groups")],
)
def test_a_step_pattern_has_one_group(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        parse_step_pattern(pattern)
    assert "epoch-" in refused.value.hint


def test_a_step_pattern_is_tried_first() -> None:
    pattern = parse_step_pattern(r"tokens-(\w+)")
    assert step_of("step3-tokens-4B", pattern) == 4_000_000_000
    assert step_of("step3", pattern) == 3
    assert step_of("tokens-many", pattern) is None


def test_unprintable_characters_are_escaped() -> None:
    assert printable("a\x1b[31mb\u202e") == "a\\x1b[31mb\\u202e"


def test_a_revision_label_is_short_and_has_the_folder() -> None:
    sha = "a" * 40
    labels = {
        Revision(ModelRef("o/n", revision="step8"), sha).label,
        Revision(ModelRef("o/n", revision=sha), sha).label,
        Revision(ModelRef("o/n"), sha).label,
        Revision(ModelRef("o/n", subfolder="checkpoint-8"), sha).label,
    }
    assert labels == {"o/n@step8", f"o/n@{'a' * 12}", f"o/n@{'a' * 12}/checkpoint-8"}
