"""Bad input of `moerge`: all problems at once, before weights are fetched; no files are left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from hubmerge.hub.client import Hub
from hubmerge.opening.extracted_adapters import extract_adapters
from hubmerge.opening.references import open_ref
from hubmerge.refs import ModelRef
from hubmerge.weights.moe_config import EXPERTS_FOLDER
from tests.command_line import run_command
from tests.end_to_end.conftest import Command, LocalHub, run_hubmerge
from tests.end_to_end.moe_experts import (
    HEBREW,
    LORA,
    MNIST,
    MOE_ARGUMENTS,
    SHORT_TRAINING,
    change_tensors,
    train_expert,
    train_loras,
)
from tests.hub.proxy import Proxy, run_proxy
from tests.models.builders import write_transformers

WEIGHTS = "adapter_model.safetensors"
NO_STEPS = ("--train-steps", "0")
LAST_STEP = ("--push-every", "4")


@pytest.fixture(scope="module", autouse=True)
def experts(local_hub: LocalHub) -> None:
    """Two LoRA experts of one base."""
    train_loras()


@pytest.fixture(scope="module")
def moe_folder(experts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of both experts, published as moes/small@step0."""
    out = tmp_path_factory.mktemp("small") / "out"
    result = run_hubmerge("moerge", MNIST, HEBREW, *NO_STEPS, "--push", "moes/small", "--out", out)
    assert result.code == 0, result.err
    return out


@pytest.fixture
def local(local_hub: LocalHub, tmp_path: Path) -> Path:
    """loras/mnist@step4 as a folder without a manifest."""
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    folder = api.snapshot_download("loras/mnist", revision="step4", local_dir=tmp_path / "local",
                                  allow_patterns="adapter*")  # fmt: skip
    return Path(folder)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "code", "sentences"),
    [
        ((MNIST, HEBREW, "--top-k", "3"), 2, ["top-k is 3, and there are 2 experts"]),
        ((MNIST,), 2, ["top-k is 2", "Write --top-k 1"]),
        ((MNIST, MNIST), 2, [f"{MNIST} and {MNIST} are one expert"]),
        ((MNIST, HEBREW, "--router", "zero", "--no-signed"), 2, ["no gradient through |R x|"]),
        ((MNIST, HEBREW, "--router", "centroid", "--no-signed", "--top-k", "4"), 2,
         ["top-k is 4", "centroid starts need signed scores", "Leave out --no-signed"]),
        ((MNIST, HEBREW, "--router", "arow"), 2, ["'arow' is not one of 'arrow', 'zero'"]),
        ((MNIST, HEBREW, "--router", "prompts"), 2,
         ["mini-mnist has no class prompts", "mini-hebrew has no class prompts"]),
        ((MNIST, HEBREW, "--router", "centroid", "--tasks", "mini-mnist"), 2,
         ["loras/hebrew@", "was not trained for any of the tasks"]),
        ((MNIST, HEBREW, "--tasks", "mini-mnits"), 2, ["Did you mean mini-mnist"]),
        ((MNIST, HEBREW, "--tasks", "mini-mnist,mini-movie"), 1,
         ["does not support tasks of kind text"]),
        ((MNIST, HEBREW, "--topk", "1"), 2, ["--topk"]),
        ((MNIST, HEBREW, "--push", "moes/x@step2"), 2, ["tags of their own", "--push moes/x"]),
        ((MNIST, HEBREW, "--push", "../x"), 2, ["not a repository"]),
        ((MNIST, HEBREW, "--push", "loras/mnist"), 3, ["another run", "--push"]),
        ((MNIST, HEBREW, "--push", "demo/mnist"), 3, ["another run", "--push"]),
        ((MNIST, HEBREW, "--push-every", "9,99"), 2, ["99"]),
        ((MNIST, HEBREW, "--push-every", "0,4"), 2, ["Write 2^k"]),
        ((MNIST, HEBREW, "--lr", "nan"), 2, ["lr"]),
        ((MNIST, HEBREW, "--batch", "-1", "--balance", "-1"), 2, ["batch", "balance"]),
        ((MNIST, HEBREW, "--extract-rank", "4"), 2, ["all of these are adapters"]),
        ((MNIST, "loras/hebrew@step3"), 1, ["steps 2, 4"]),
        ((MNIST, "loras/none"), 1, ["no such repository"]),
        ((MNIST, "./nowhere"), 2, ["There is no folder nowhere"]),
        ((MNIST, HEBREW, "--base", "demo/mnist@step2"), 3, ["base"]),
        ((), 2, ["No experts are named"]),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else None,
)  # fmt: skip
def test_bad_arguments_give_a_message_and_a_hint(
    hubmerge: Command, tmp_path: Path, words: tuple[str, ...], code: int, sentences: list[str]
) -> None:
    steps = () if {"--push-every"} & set(words) else NO_STEPS
    short = ("--train-steps", "8") if not steps else ()
    result = hubmerge("moerge", *words, *steps, *short, "--out", tmp_path / "never")
    assert result.code == code, result.err
    for sentence in sentences:
        assert sentence in one_line(result.err)
    assert "Traceback" not in result.err
    assert "a bug in hubmerge" not in result.err
    assert result.out == ""
    assert not (tmp_path / "never").exists()


@pytest.fixture
def proxy(local_hub: LocalHub) -> Iterator[Proxy]:
    """The Hub of `local_hub` behind a proxy that records requests."""
    with run_proxy(local_hub.server.url) as proxy:
        yield proxy


@pytest.fixture
def refuse_moerge(
    proxy: Proxy, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """Run `moerge` on that Hub with an empty home; returns the error message."""
    monkeypatch.setenv("HF_ENDPOINT", proxy.url)
    monkeypatch.setenv("HF_TOKEN", local_hub.server.token)
    monkeypatch.setenv("HUBMERGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def refused(*words: object, code: int) -> str:
        out = str(tmp_path / "never")
        command = ["moerge", *map(str, words), "--hub", "default", "--out", out]
        result = run_command(*command, hub=None)
        assert result.exit_code == code, result.stderr
        assert not (tmp_path / "never").exists()
        assert not list((tmp_path / "home").rglob("step*"))
        return one_line(result.stderr)

    return refused


def requested_weights(proxy: Proxy) -> list[str]:
    """GET requests for files of weights, also those for only a header."""
    return [line for line in proxy.requests if line.startswith("GET") and "safetensors" in line]


def test_full_experts_and_mixtures_are_refused_before_any_weights(
    refuse_moerge: Callable[..., str], proxy: Proxy, moe_folder: Path
) -> None:
    models = ("demo/mnist@step8", "demo/hebrew@step8", "moes/small@step0", HEBREW)
    message = refuse_moerge(*models, code=2)
    for part in ("demo/mnist@step8 is not an adapter", "demo/hebrew@step8 is not an adapter",
                 "--extract-rank 8", "moes/small@step0 is a mixture",
                 "experts/mini-mnist"):  # fmt: skip
        assert part in message
    requests = requested_weights(proxy)
    assert not [line for line in requests if "/demo/" in line or "/moes/" in line]


def test_adapters_that_do_not_fit_together_are_refused_before_any_weights(
    refuse_moerge: Callable[..., str],
    proxy: Proxy,
    local_hub: LocalHub,
    local: Path,
    tmp_path: Path,
) -> None:
    """One adapter lacks a layer, and one is too narrow."""
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    state = load_file(local / WEIGHTS)
    name = next(name for name in state if "c_fc.lora_A" in name)
    lacking, narrow = tmp_path / "lacking", tmp_path / "narrow"
    for folder in (lacking, narrow):
        shutil.copytree(local, folder)
    change_tensors(lacking / WEIGHTS, **{name: None, name.replace("lora_A", "lora_B"): None})
    change_tensors(narrow / WEIGHTS, **{name: state[name][:, :7]})
    for folder in (lacking, narrow):
        api.create_repo(f"odd/{folder.name}", exist_ok=True)
        api.upload_folder(repo_id=f"odd/{folder.name}", folder_path=folder)
    proxy.requests.clear()
    names = ("odd/lacking", "odd/narrow")
    message = refuse_moerge(MNIST, *names, "--tasks", "mini-mnist", code=1)
    assert "odd/lacking@" in message
    assert "does not change" in message
    assert "odd/narrow@" in message
    assert "does not fit the base" in message
    cached = [path for path in (tmp_path / "home").rglob("*.safetensors") if path.is_file()]
    assert cached == []


@pytest.fixture(scope="module")
def shades(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and a task of pictures; shades/plain is a LoRA for both."""
    folder = tmp_path_factory.mktemp("shades")
    write_transformers(folder / "base")
    (folder / "task.yaml").write_text(_IMAGE_TASK)
    write_images(folder / "pictures")
    train_expert(folder / "task.yaml", "shades/plain", *LORA, *LAST_STEP, base=folder / "base")
    return folder


@pytest.mark.parametrize("tune", [pytest.param("dora", marks=pytest.mark.slow), "ia3"])
def test_dora_and_ia3_adapters_are_refused(hubmerge: Command, shades: Path, tune: str) -> None:
    words = ("--tune", tune, *(LORA[2:] if tune == "dora" else ()), *LAST_STEP)
    train_expert(shades / "task.yaml", f"shades/{tune}", *words, base=shades / "base")
    result = hubmerge("moerge", f"shades/{tune}@step4", "shades/plain@step4", *NO_STEPS, "--tasks",
                    shades / "task.yaml")  # fmt: skip
    assert result.code == 1, result.err
    assert f"shades/{tune}@step4 does more than add a product" in one_line(result.err)
    assert "shades/plain@step4 does more" not in one_line(result.err)


_IMAGE_TASK = "name: shades\nkind: image\ndata: {path: pictures}\n"
_IMAGE_TASK += "splits: {test: {of: train, fraction: 0.25}}\n"


def write_images(folder: Path) -> None:
    """Write light and dark pictures."""
    for name, shade in (("one", 40), ("two", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            pixels = np.full((16, 16, 3), shade + number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_experts_of_two_bases_are_refused(
    hubmerge: Command, local_hub: LocalHub, shades: Path, tmp_path: Path
) -> None:
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    other = Path(api.snapshot_download("hubmerge/tiny-clip", local_dir=tmp_path / "base"))
    weights = other / "open_clip_model.safetensors"
    change_tensors(weights, **{"visual.proj": load_file(weights)["visual.proj"] + 1})
    train_expert(shades / "task.yaml", "odd/other", *LORA, *LAST_STEP, base=other)
    for more in ((), ("--base", "hubmerge/tiny-clip")):
        result = hubmerge("moerge", "odd/other@step4", HEBREW, *NO_STEPS, *more)
        assert result.code == 3, result.err
        assert "base" in result.err
        assert "odd/other" in result.err


def test_extract_rank_turns_full_experts_into_adapters(
    hubmerge: Command, local_hub: LocalHub, tmp_path: Path
) -> None:
    words = (
        "moerge",
        "demo/mnist@step8",
        "demo/hebrew@step8",
        MNIST,
        *NO_STEPS,
        "--extract-rank",
        "4",
    )
    before = sorted(local_hub.home.glob("extracted/*"))
    assert hubmerge(*words, "--dry-run").code == 0
    assert sorted(local_hub.home.glob("extracted/*")) == before
    result = hubmerge(*words, "--out", tmp_path / "made", "--json")
    assert result.code == 0, result.err
    notes = json.loads((tmp_path / "made" / "hubmerge.json").read_text())["training"]["notes"]
    assert any("demo/mnist@step8 as a LoRA of rank 4 keeps" in note for note in notes)
    ranks = {path.parent.name: min(min(t.shape) for t in load_file(path).values())
             for path in (tmp_path / "made" / EXPERTS_FOLDER).rglob(WEIGHTS)}  # fmt: skip
    assert ranks == {"mini-mnist": 4, "mini-hebrew": 4, "mini-mnist-2": 2}
    scores = hubmerge("eval", tmp_path / "made", "--split", "validation", "--json")
    assert {score["task"].split("@")[0] for score in scores.data} == {"mini-mnist", "mini-hebrew"}


def test_extracted_adapters_depend_on_the_base(hub: Hub, tmp_path: Path) -> None:
    expert, base, other = (
        open_ref(hub, ModelRef(repo, revision=step))
        for repo, step in (
            ("demo/mnist", "step8"),
            ("hubmerge/tiny-clip", None),
            ("demo/mnist", "step2"),
        )
    )
    folders = [
        extract_adapters([expert], model, 2, tmp_path)[0][0].folder for model in (base, other, base)
    ]
    assert folders[0] == folders[2] != folders[1]
    first, second = (load_file(folder / WEIGHTS) for folder in folders[:2])
    assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_nan_in_weights_is_refused(hubmerge: Command, local: Path, tmp_path: Path) -> None:
    name = next(iter(load_file(local / WEIGHTS)))
    change_tensors(local / WEIGHTS, **{name: load_file(local / WEIGHTS)[name] * np.nan})
    result = hubmerge(
        "moerge", local, HEBREW, *NO_STEPS, "--tasks", "mini-mnist", "--out", tmp_path / "m"
    )
    assert result.code == 1
    assert f"{name} has values that are not finite" in one_line(result.err)
    assert not (tmp_path / "m").exists()


def test_tasks_of_an_expert_without_manifest_must_be_named(hubmerge: Command, local: Path) -> None:
    result = hubmerge("moerge", local, HEBREW, *NO_STEPS)
    assert result.code == 2
    assert "was not trained for tasks that come with hubmerge" in one_line(result.err)
    assert "--tasks" in result.err


def test_a_folder_with_other_files_is_refused(hubmerge: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = hubmerge("moerge", *MOE_ARGUMENTS, "--out", tmp_path)
    assert result.code == 1
    assert "is not empty" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_diverged_loss_ends_training(hubmerge: Command, tmp_path: Path) -> None:
    words = ("--train-steps", "40", "--lr", "1e30", "--warmup-steps", "0", "--clip", "1e30")
    result = hubmerge(
        "moerge", MNIST, HEBREW, *SHORT_TRAINING[2:], *words, "--out", tmp_path / "never"
    )
    assert result.code == 1, result.err
    assert "is not finite" in result.err
    assert not (tmp_path / "never").exists()


def test_layers_that_no_example_passes(hubmerge: Command, tmp_path: Path) -> None:
    """peft matches the ends of names, so it finds layers in CLIP's text tower too."""
    base = tmp_path / "base"
    model = write_transformers(base)
    (tmp_path / "task.yaml").write_text(_IMAGE_TASK)
    write_images(tmp_path / "pictures")
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    for name in ("one", "two"):
        peft.save_pretrained(str(tmp_path / name))
    words = (tmp_path / "one", tmp_path / "two", "--base", base, "--tasks", tmp_path / "task.yaml")
    for router in ("arrow", "random"):
        result = hubmerge("moerge", *words, "--router", router, "--dry-run")
        assert result.code == 1, result.err
        assert "adapt 4 layers (text_model.encoder.layers.0" in one_line(result.err)
        assert "which no row of the tasks passes" in one_line(result.err)
