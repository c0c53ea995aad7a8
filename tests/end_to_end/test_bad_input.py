"""Bad input: one sentence, a hint, the documented exit code, and no files lost or left."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image
from safetensors.numpy import load_file, save_file

from hubmerge.hub import client_errors
from hubmerge.server.tokens import Tokens
from tests.command_line import run_command
from tests.end_to_end.conftest import TRAIN, Command, LocalHub
from tests.end_to_end.pictures import write_pictures

WEIGHTS = "open_clip_model.safetensors"
TO = ("--to", "demo/never")
SHORT = ("--base", "hubmerge/tiny-clip", "--steps", "3", "--batch", "4", "--warmup-steps", "1",
         "--schedule", "constant")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("train", *TRAIN, *TO, "--task", "mini-mnits"), 2, "Did you mean mini-mnist"),
        (
            ("train", *TRAIN, *TO, "--task", "missing/folder"),
            1,
            "missing/folder is neither a folder of images by class",
        ),
        (("train", *TRAIN, *TO, "--task", "mini-mnist", "--schedule", "cosin"), 2, "'cosine'"),
        (("train", *TRAIN, *TO, "--task", "mini-mnist", "--push-every", "3^"), 2, "Write 2^k"),
        (("train", *TRAIN, *TO, "--task", "mini-mnist", "--push-every", "4,99"), 2, "--steps 99"),
        (("train", *TRAIN, "--task", "mini-mnist", "--to", "../x"), 2, "not a repository id"),
        (("train", *TRAIN, "--task", "mini-mnist", "--to", "o/" + "n" * 300), 2, "too long"),
        (("train", "--task", "mini-mnist"), 2, "base is missing"),
        (("merge", "demo/mnist@step8", "demo/hebrew@step8", "--method", "tise"), 2, "mean ties"),
        (
            ("merge", "demo/mnist@step8", "demo/hebrew@step8", "--set", "densty=1"),
            2,
            "mean density",
        ),
        (
            ("merge", "demo/mnist@step8", "demo/hebrew@step8", "--set", "density=2"),
            2,
            "density='2'",
        ),
        (("merge", "demo/mnist@step8", "demo/hebrew@step8", "--set", "density"), 2, "name=value"),
        (
            ("merge", "demo/mnist@step8", "demo/hebrew@step8", "--set", "weight=1,2,3"),
            2,
            "3 numbers for 2 experts",
        ),
        (
            ("merge", "demo/mnist@step8", "demo/hebrew@step8", "--set", "keep=0,1"),
            2,
            "keep=0,1 is not above 0 and at most 1",
        ),
        (("merge", "demo/mnist@step8", "demo/hebrew@step16"), 1, "steps 2, 4, 8"),
        (("merge", "demo/mnist@step8", "demo/nobody@step8"), 1, "no such repository"),
        (("merge", "demo/mnist@step8", "-rf/x@step8"), 2, ""),
        (("merge", "demo/mnist@step8", "demo/x\x1b[31m@step8"), 2, "\\x1b"),
        (("eval", "demo/mnist@step8", "--tasks", "mnits"), 2, "Did you mean mnist"),
        (("eval", "hubmerge/tiny-clip"), 2, "--tasks"),
        (("eval", "demo/mnist@step8", "--every-step"), 2, "owner/name without a step"),
        (("eval", "demo/mnist@step8", "--device", "foo"), 2, "--device cpu"),
        (("merge", "./nowhere", "demo/mnist@step8"), 2, "There is no folder nowhere"),
        (("card", "hubmerge/tiny-clip"), 2, "no hubmerge.json"),
        (("report", "demo/mnist", "--split", "train"), 1, "hubmerge eval"),
        (("steps", "demo/nobody"), 1, "no such repository"),
        (("steps", "demo/mnist", "--hub", "lokal"), 2, "--hub local"),
        (
            ("merge", "demo/mnist@step8", "demo/hebrew@step8", "--push", "./x"),
            2,
            "not a repository",
        ),
    ],
)
def test_bad_arguments_give_a_message_and_a_hint(
    hubmerge: Command, words: tuple[str, ...], code: int, sentence: str
) -> None:
    result = hubmerge(*words)
    assert result.code == code, result.err
    assert sentence in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert "\x1b" not in result.err


def test_all_problems_of_a_spec_are_reported_together(hubmerge: Command, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("base: o/b\ntask: mini-mnist\nto: bad\nstep: 8\nlr: -1\n")
    result = hubmerge("train", spec)
    assert result.code == 2
    for part in ("did you mean 'steps'", "lr must be", "to: 'bad' is not a repository id"):
        assert part in result.err


def test_a_repository_holds_one_run(hubmerge: Command) -> None:
    result = hubmerge("train", *TRAIN, "--task", "mini-mnist", "--to", "demo/mnist", "--seed", "1")
    assert result.code == 3
    assert "another run" in result.err
    assert "--to" in result.err


def test_a_repository_has_one_base(hubmerge: Command, local_hub: LocalHub, tmp_path: Path) -> None:
    base = write_other_base(tmp_path)
    words = [*TRAIN]
    words[1] = str(base)
    result = hubmerge("train", *words, "--task", "mini-mnist", "--to", "demo/mnist")
    assert result.code == 3
    assert "from another base: hubmerge/tiny-clip" in result.err


def test_experts_of_different_bases_do_not_merge(
    hubmerge: Command, tmp_path: Path, local_hub: LocalHub
) -> None:
    task, base = write_pictures(tmp_path / "pictures", 0), write_other_base(tmp_path)
    words = ("train", *SHORT, "--base", base, "--push-every", "3", "--task", task)
    assert hubmerge(*words, "--to", "demo/based", "--out", tmp_path / "run").code == 0
    result = hubmerge("merge", "demo/mnist@step8", "demo/based@step3", "--out", tmp_path / "m")
    assert result.code == 3
    assert "different bases" in result.err
    forced = hubmerge(
        "merge", "demo/mnist@step8", "demo/based@step3", "--base", "hubmerge/tiny-clip"
    )
    assert forced.code == 3
    assert not (tmp_path / "m").exists()


def test_training_needs_a_token_with_write_access(
    hubmerge: Command, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = Tokens(local_hub.server.data).create("reader", "read")
    monkeypatch.setenv("HF_ENDPOINT", local_hub.server.url)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HUBMERGE_HUB", "default")
    for to in ("demo/forbidden", "demo/mnist"):
        words = ["train", *TRAIN, "--task", "mini-mnist", "--to", to, "--out", str(tmp_path)]
        result = run_command(*words, hub=None)
        assert result.exit_code == 1, result.stderr
        assert "does not allow it" in result.stderr
        assert "hf auth login" in result.stderr
        assert token not in result.output
        assert not (tmp_path / "steps").exists()


def test_a_hub_that_does_not_answer(hubmerge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()
    monkeypatch.setattr(client_errors, "sleep", waits.append)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HUBMERGE_HUB", "default")
    result = run_command("steps", "demo/mnist", hub=None)
    assert result.exit_code == 75
    assert len(waits) == 3
    assert "does not answer" in result.stderr
    assert "--hub local" in result.stderr


def test_a_diverged_loss_keeps_the_last_good_step(
    hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    words = (
        "train", "--base", "hubmerge/tiny-clip", "--task", "mini-mnist", "--to", "demo/diverged",
        "--steps", "64", "--push-every", "1,64", "--lr", "100", "--warmup-steps", "0",
        "--batch", "16", "--schedule", "constant", "--clip", "1e30", "--out", tmp_path / "run",
    )  # fmt: skip
    result = hubmerge(*words)
    assert result.code == 1
    assert "is not finite at step" in result.err
    assert "--lr" in result.err
    tags = HfApi(endpoint=local_hub.server.url).list_repo_refs("demo/diverged").tags
    assert [tag.name for tag in tags] == ["step1"]


def test_a_message_names_the_broken_expert(
    hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    assert hubmerge("merge", "demo/mnist@step8", "demo/hebrew@step8", "--out", good).code == 0
    broken = tmp_path / "broken"
    shutil.copytree(good, broken)
    (broken / "hubmerge.json").unlink()
    weights = load_file(broken / WEIGHTS)
    weights["visual.proj"] = np.full_like(weights["visual.proj"], np.nan)
    save_file(weights, broken / WEIGHTS)
    words = ("merge", "demo/mnist@step8", str(broken), "--base", "hubmerge/tiny-clip")
    result = hubmerge(*words, "--out", tmp_path / "m")
    assert result.code == 1
    assert "broken" in result.err
    assert "visual.proj" in result.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("first", "then"), [
    pytest.param("1,2,3", "1,3", marks=pytest.mark.slow), ("2,3", "1,2,3"),
])  # fmt: skip
def test_other_push_rules_are_another_run(
    hubmerge: Command, tmp_path: Path, first: str, then: str
) -> None:
    task, to = write_pictures(tmp_path / "pictures", 0), f"demo/rules-{len(first)}"
    words = ("train", *SHORT, "--task", task, "--to", to, "--out", tmp_path / "r", "--push-every")
    assert hubmerge(*words, first).code == 0
    result = hubmerge(*words, then)
    assert result.code == 3
    assert "another run" in result.err


def test_the_folder_of_another_run_is_not_published(hubmerge: Command, tmp_path: Path) -> None:
    words = ("train", *SHORT, "--push-every", "3", "--out", tmp_path / "run")
    task = write_pictures(tmp_path / "pictures", 0)
    assert hubmerge(*words, "--task", task, "--to", "demo/mine").code == 0
    result = hubmerge(*words, "--task", "mini-hebrew", "--to", "demo/other")
    assert result.code == 3
    assert "--out" in result.err


def test_bad_data_create_no_repository(
    hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    result = hubmerge("train", *TRAIN, "--task", tmp_path / "photos", "--to", "demo/nothing")
    assert result.code == 1
    assert "photos" in result.err
    assert not HfApi(endpoint=local_hub.server.url).repo_exists("demo/nothing")


def test_weights_that_do_not_match_their_manifest(hubmerge: Command, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert hubmerge("merge", "demo/mnist@step8", "demo/hebrew@step8", "--out", out).code == 0
    weights = load_file(out / WEIGHTS)
    weights["visual.proj"] += 1
    save_file(weights, out / WEIGHTS)
    for words in (("eval", out, "--tasks", "mini-mnist"), ("card", out, "--push", "demo/forged")):
        result = hubmerge(*words)
        assert result.code == 3, result.err
        assert "do not match the SHA-256" in result.err


def test_files_on_main_are_not_replaced(
    hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    api.create_repo("demo/notes")
    api.upload_file(path_or_fileobj=b"dear", path_in_repo="diary.txt", repo_id="demo/notes")
    merge = ("merge", "demo/mnist@step8", "demo/hebrew@step8", "--out", tmp_path / "m", "--push")
    train = ("train", *TRAIN, "--task", "mini-mnist", "--to")
    for words in ((*merge, "demo/notes"), (*merge, "demo/mnist"), (*train, "demo/notes")):
        result = hubmerge(*words)
        assert result.code == 3, result.err
        assert "would be replaced" in result.err
    assert api.file_exists("demo/notes", "diary.txt")
    assert not (tmp_path / "m").exists()


def test_two_tasks_of_the_same_name_are_two_tasks(hubmerge: Command, tmp_path: Path) -> None:
    for parent, classes in (("one", "ab"), ("two", "abc")):
        for number, name in enumerate(classes):
            folder = tmp_path / parent / "photos" / name
            folder.mkdir(parents=True)
            for n in range(10):
                Image.new("L", (28, 28), 80 * number + n).save(folder / f"{n}.png")
    tasks = ",".join(str(tmp_path / parent / "photos") for parent in ("one", "two"))
    scores = hubmerge("eval", "demo/mnist@step2", "--tasks", tasks, "--json").data
    assert [score["count"] for score in scores] == [4, 6]
    assert len({score["task"] for score in scores}) == 2


def test_a_dry_run_refuses_what_a_merge_refuses(hubmerge: Command, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("mine")
    merge = ("merge", "demo/mnist@step8", "demo/hebrew@step8", "--out", tmp_path / "m", "--dry-run")
    assert hubmerge(*merge).code == 1
    assert hubmerge(*merge[:-1], "--out", tmp_path / "n", "--dtype", "BF61", "--dry-run").code == 2


def test_an_existing_merge_is_not_overwritten(hubmerge: Command, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert hubmerge("merge", "demo/mnist@step8", "demo/hebrew@step8", "--out", out).code == 0
    before = (out / WEIGHTS).read_bytes()
    other = ("merge", "demo/mnist@step2", "demo/hebrew@step2", "--out", out)
    result = hubmerge(*other)
    assert result.code == 1
    assert (out / WEIGHTS).read_bytes() == before
    assert hubmerge(*other, "--replace").code == 0
    assert (out / WEIGHTS).read_bytes() != before


def write_other_base(folder: Path) -> Path:
    """The packaged base with one number changed: another model of the same shape."""
    import hubmerge

    base = folder / "base"
    shutil.copytree(Path(hubmerge.__file__).parent / "mini" / "base", base)
    weights = load_file(base / WEIGHTS)
    weights["visual.proj"][0, 0] += 1
    save_file(weights, base / WEIGHTS)
    return base
