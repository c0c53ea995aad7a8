"""What no mixture can be made of, told at once, before weights are fetched and nothing is left."""

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
from typer.testing import CliRunner

from hubmerge.cli.app import app
from hubmerge.hub.client import Hub
from hubmerge.opening.extracted_adapters import as_adapters
from hubmerge.opening.references import open_ref
from hubmerge.refs import ModelRef
from hubmerge.weights.moe_config import EXPERTS
from tests.hub.proxy import Proxy, proxied
from tests.journey.conftest import Command, World
from tests.journey.moes import HEBREW, LORA, MIXED, MNIST, SHORT, ask, changed, train, train_loras
from tests.models.worlds import write_transformers

WEIGHTS = "adapter_model.safetensors"
NONE = ("--train-steps", "0")


@pytest.fixture(scope="module", autouse=True)
def experts(world: World) -> None:
    """Two LoRA experts of the world's base."""
    train_loras()


@pytest.fixture(scope="module")
def mixture(experts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of the two, published as moes/small@step0."""
    out = tmp_path_factory.mktemp("small") / "out"
    said = ask("moerge", MNIST, HEBREW, *NONE, "--push", "moes/small", "--out", out)
    assert said.code == 0, said.err
    return out


@pytest.fixture
def local(world: World, tmp_path: Path) -> Path:
    """loras/mnist@step4 as a folder that nothing vouches for."""
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    found = api.snapshot_download("loras/mnist", revision="step4", local_dir=tmp_path / "local",
                                  allow_patterns="adapter*")  # fmt: skip
    return Path(found)


def words_of(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "code", "sentences"),
    [
        ((MNIST, HEBREW, "--top-k", "3"), 2, ["top-k is 3, and there are 2 experts"]),
        ((MNIST,), 2, ["top-k is 2", "Ask for 1"]),
        ((MNIST, MNIST), 2, [f"{MNIST} and {MNIST} are one expert"]),
        ((MNIST, HEBREW, "--router", "zero", "--no-signed"), 2, ["no gradient through |R x|"]),
        ((MNIST, HEBREW, "--router", "centroid", "--no-signed", "--top-k", "4"), 2,
         ["top-k is 4", "starts from centroid is signed", "Leave out --no-signed"]),
        ((MNIST, HEBREW, "--router", "arow"), 2, ["'arow' is not one of 'arrow', 'zero'"]),
        ((MNIST, HEBREW, "--router", "prompts"), 2,
         ["mini-mnist has no class prompts", "mini-hebrew has no class prompts"]),
        ((MNIST, HEBREW, "--router", "centroid", "--tasks", "mini-mnist"), 2,
         ["loras/hebrew@", "was trained for none of the tasks"]),
        ((MNIST, HEBREW, "--tasks", "mini-mnits"), 2, ["Did you mean mini-mnist"]),
        ((MNIST, HEBREW, "--tasks", "mini-mnist,mini-movie"), 1, ["cannot do a task of kind text"]),
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
        ((), 2, ["nothing to mix"]),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else None,
)  # fmt: skip
def test_one_sentence_and_a_way_out(
    hubmerge: Command, tmp_path: Path, words: tuple[str, ...], code: int, sentences: list[str]
) -> None:
    steps = () if {"--push-every"} & set(words) else NONE
    short = ("--train-steps", "8") if not steps else ()
    said = hubmerge("moerge", *words, *steps, *short, "--out", tmp_path / "never")
    assert said.code == code, said.err
    for sentence in sentences:
        assert sentence in words_of(said.err)
    assert "Traceback" not in said.err
    assert "in a way it should not" not in said.err
    assert said.out == ""
    assert not (tmp_path / "never").exists()


@pytest.fixture
def proxy(world: World) -> Iterator[Proxy]:
    """The world's Hub, which tells what was asked of it."""
    with proxied(world.server.url) as proxy:
        yield proxy


@pytest.fixture
def watched(
    proxy: Proxy, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """The command before that Hub, in an empty home; what it refused with."""
    monkeypatch.setenv("HF_ENDPOINT", proxy.url)
    monkeypatch.setenv("HF_TOKEN", world.server.token)
    monkeypatch.setenv("HUBMERGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def refused(*words: object, code: int) -> str:
        asked = ["moerge", *map(str, words), "--hub", "default", "--out", str(tmp_path / "never")]
        said = CliRunner().invoke(app, asked)
        assert said.exit_code == code, said.stderr
        assert not (tmp_path / "never").exists()
        assert not list((tmp_path / "home").rglob("step*"))
        return words_of(said.stderr)

    return refused


def weights_asked_for(proxy: Proxy) -> list[str]:
    """Requests for the bytes of weights; the first kilobytes of a file are its header."""
    return [one for one in proxy.seen if one.startswith("GET") and "safetensors" in one]


def test_full_experts_and_mixtures_are_told_before_any_weights(
    watched: Callable[..., str], proxy: Proxy, mixture: Path
) -> None:
    said = watched("demo/mnist@step8", "demo/hebrew@step8", "moes/small@step0", HEBREW, code=2)
    for part in ("demo/mnist@step8 is no adapter", "demo/hebrew@step8 is no adapter",
                 "--extract-rank 8", "moes/small@step0 is a mixture",
                 "experts/mini-mnist"):  # fmt: skip
        assert part in said
    assert not [one for one in weights_asked_for(proxy) if "/demo/" in one or "/moes/" in one]


def test_adapters_that_do_not_go_together_are_told_before_any_weights(
    watched: Callable[..., str], proxy: Proxy, world: World, local: Path, tmp_path: Path
) -> None:
    """One lacks a layer, one is too narrow, and one does more than LoRA."""
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    state = load_file(local / WEIGHTS)
    name = next(name for name in state if "c_fc.lora_A" in name)
    lacking, narrow = tmp_path / "lacking", tmp_path / "narrow"
    for folder in (lacking, narrow):
        shutil.copytree(local, folder)
    changed(lacking / WEIGHTS, **{name: None, name.replace("lora_A", "lora_B"): None})
    changed(narrow / WEIGHTS, **{name: state[name][:, :7]})
    for folder in (lacking, narrow):
        api.create_repo(f"odd/{folder.name}", exist_ok=True)
        api.upload_folder(repo_id=f"odd/{folder.name}", folder_path=folder)
    proxy.seen.clear()
    said = watched(MNIST, "odd/lacking", "odd/narrow", "--tasks", "mini-mnist", code=1)
    assert "odd/lacking@" in said
    assert "has no part for" in said
    assert "odd/narrow@" in said
    assert "does not fit the base" in said
    cached = [path for path in (tmp_path / "home").rglob("*.safetensors") if path.is_file()]
    assert cached == []


@pytest.mark.parametrize("tune", ["dora", "ia3"])
def test_other_adapters_are_no_experts(
    hubmerge: Command, world: World, tmp_path: Path, tune: str
) -> None:
    write_transformers(tmp_path / "base")
    (tmp_path / "task.yaml").write_text(_IMAGES)
    images(tmp_path / "pictures")
    ranks = {"dora": LORA[2:], "ia3": (), "lora": LORA[2:]}
    for how, to in ((tune, "odd"), ("lora", "plain")):
        words = ("--tune", how, *ranks[how])
        train(tmp_path / "task.yaml", f"{tune}/{to}", *words, base=tmp_path / "base")
    said = hubmerge("moerge", f"{tune}/odd@step4", f"{tune}/plain@step4", *NONE, "--tasks",
                    tmp_path / "task.yaml")  # fmt: skip
    assert said.code == 1, said.err
    assert f"{tune}/odd@step4 does more than add a product" in words_of(said.err)
    assert f"{tune}/plain@step4 does" not in words_of(said.err)


_IMAGES = "name: shades\nkind: image\ndata: {path: pictures}\n"
_IMAGES += "splits: {test: {of: train, fraction: 0.25}}\n"


def images(folder: Path) -> None:
    """Light and dark pictures."""
    for name, shade in (("one", 40), ("two", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            pixels = np.full((16, 16, 3), shade + number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_experts_of_different_bases(hubmerge: Command, world: World, tmp_path: Path) -> None:
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    other = Path(api.snapshot_download("hubmerge/tiny-clip", local_dir=tmp_path / "base"))
    weights = other / "open_clip_model.safetensors"
    changed(weights, **{"visual.proj": load_file(weights)["visual.proj"] + 1})
    train("mini-mnist", "odd/other", *LORA, base=other)
    for more in ((), ("--base", "hubmerge/tiny-clip")):
        said = hubmerge("moerge", "odd/other@step4", HEBREW, *NONE, *more)
        assert said.code == 3, said.err
        assert "base" in said.err
        assert "odd/other" in said.err


def test_full_experts_become_adapters_when_asked(
    hubmerge: Command, world: World, tmp_path: Path
) -> None:
    words = ("moerge", "demo/mnist@step8", "demo/hebrew@step8", MNIST, *NONE, "--extract-rank", "4")
    before = sorted(world.home.glob("extracted/*"))
    assert hubmerge(*words, "--dry-run").code == 0
    assert sorted(world.home.glob("extracted/*")) == before
    said = hubmerge(*words, "--out", tmp_path / "made", "--json")
    assert said.code == 0, said.err
    notes = json.loads((tmp_path / "made" / "hubmerge.json").read_text())["training"]["notes"]
    assert any("demo/mnist@step8 as a LoRA of rank 4 keeps" in note for note in notes)
    ranks = {path.parent.name: min(min(t.shape) for t in load_file(path).values())
             for path in (tmp_path / "made" / EXPERTS).rglob(WEIGHTS)}  # fmt: skip
    assert ranks == {"mini-mnist": 4, "mini-hebrew": 4, "mini-mnist-2": 2}
    scores = hubmerge("eval", tmp_path / "made", "--split", "validation", "--json")
    assert {score["task"].split("@")[0] for score in scores.data} == {"mini-mnist", "mini-hebrew"}


def test_what_is_extracted_hangs_on_the_base(hub: Hub, tmp_path: Path) -> None:
    expert, base, other = (
        open_ref(hub, ModelRef(repo, revision=step))
        for repo, step in (
            ("demo/mnist", "step8"),
            ("hubmerge/tiny-clip", None),
            ("demo/mnist", "step2"),
        )
    )
    folders = [as_adapters([expert], one, 2, tmp_path)[0][0].folder for one in (base, other, base)]
    assert folders[0] == folders[2] != folders[1]
    first, second = (load_file(folder / WEIGHTS) for folder in folders[:2])
    assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_weights_that_are_no_numbers(hubmerge: Command, local: Path, tmp_path: Path) -> None:
    name = next(iter(load_file(local / WEIGHTS)))
    changed(local / WEIGHTS, **{name: load_file(local / WEIGHTS)[name] * np.nan})
    said = hubmerge(
        "moerge", local, HEBREW, *NONE, "--tasks", "mini-mnist", "--out", tmp_path / "m"
    )
    assert said.code == 1
    assert f"{name} is not all numbers" in words_of(said.err)
    assert not (tmp_path / "m").exists()


def test_a_task_of_its_own_must_be_named(hubmerge: Command, local: Path) -> None:
    said = hubmerge("moerge", local, HEBREW, *NONE)
    assert said.code == 2
    assert "was not trained for tasks that come with hubmerge" in words_of(said.err)
    assert "--tasks" in said.err


def test_out_that_holds_something_else(hubmerge: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    said = hubmerge("moerge", *MIXED, "--out", tmp_path)
    assert said.code == 1
    assert "is not empty" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_loss_that_is_no_number_ends_it(hubmerge: Command, tmp_path: Path) -> None:
    words = ("--train-steps", "40", "--lr", "1e30", "--warmup-steps", "0", "--clip", "1e30")
    said = hubmerge("moerge", MNIST, HEBREW, *SHORT[2:], *words, "--out", tmp_path / "never")
    assert said.code == 1, said.err
    assert "no longer a number" in said.err
    assert not (tmp_path / "never").exists()


def test_layers_that_no_row_passes(hubmerge: Command, tmp_path: Path) -> None:
    """By the endings of their names, peft finds layers in CLIP's text tower as well."""
    base = tmp_path / "base"
    model = write_transformers(base)
    (tmp_path / "task.yaml").write_text(_IMAGES)
    images(tmp_path / "pictures")
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    for name in ("one", "two"):
        peft.save_pretrained(str(tmp_path / name))
    words = (tmp_path / "one", tmp_path / "two", "--base", base, "--tasks", tmp_path / "task.yaml")
    for router in ("arrow", "random"):
        said = hubmerge("moerge", *words, "--router", router, "--dry-run")
        assert said.code == 1, said.err
        assert "adapt 4 layers (text_model.encoder.layers.0" in words_of(said.err)
        assert "which no row of the tasks passes" in words_of(said.err)
