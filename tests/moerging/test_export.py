"""Exports as strangers use them: transformers, a folder or a Hub, and no hubmerge."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, CLIPModel

from hubmerge.errors import UsageError
from hubmerge.models.loading import open_model
from hubmerge.moerging.export import export_transformers
from hubmerge.moerging.moe_model import Mixture, read_mixture
from hubmerge.moerging.remote_code import modeling_hubmerge_moe
from hubmerge.moerging.remote_code.modeling_hubmerge_moe import HubmergeMixture
from hubmerge.server import ServerState, lease
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import RouterConfig
from tests.models.worlds import change_json
from tests.moerging.small_mixtures import FAMILIES, IMAGES, TEXT, close, mixture, said

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft's own
SIGNED = RouterConfig(signed=True, temperature=2.0)
ROUTERS = {"vit": SIGNED, "llama": SIGNED}  # the others have |R x| / 0.5
# What each family says, once more for a process that has no tests.
STRANGER = """
import os, re, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSeq2SeqLM

given = load_file("inputs.safetensors")
images, text = given.pop("images"), given
RUN = {
    "clip": lambda model: model.vision_model(pixel_values=images)[0],
    "vit": lambda model: model(pixel_values=images)[0],
    "bert": lambda m: torch.cat([m(**text)[0], m(**text).pooler_output.unsqueeze(1)], dim=1),
    "t5": lambda model: model(**text, labels=text["input_ids"]).logits,
}
RUN["gpt2"] = RUN["llama"] = RUN["t5"]
told = {}
"""


@dataclass(frozen=True)
class World:
    """A Hub that has every base, and a mixture over each with its export at `out[name]`."""

    root: Path
    server: ServerState
    mixtures: Mapping[str, Mixture]
    out: Mapping[str, Path]

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.server.url, token=self.server.token)

    def run(self, program: str) -> subprocess.CompletedProcess[str]:
        """A stranger's program, in a new home that knows this Hub and no account."""
        home = self.root / f"home-{len(list(self.root.glob('home-*')))}"
        home.mkdir()
        save_file({"images": IMAGES, **TEXT}, home / "inputs.safetensors")
        environment = {
            **{key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS")},
            **{"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": self.server.url},
        }
        return subprocess.run(
            [sys.executable, "-I", "-c", STRANGER + program],
            cwd=home, env=environment, capture_output=True, text=True, timeout=200,
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    with lease(root / "hub") as server:
        world = World(root, server, {}, {})
        mixtures, out = {}, {}
        for name, family in FAMILIES.items():
            base, repo = root / "bases" / name, f"demo/tiny-{name}"
            family.make(base)
            sha = push(world.api, repo, base)
            options = {"router": ROUTERS[name]} if name in ROUTERS else {}
            mixtures[name] = mixture(
                name, base, root / "made" / name, pinned=(repo, sha), **options
            )
            out[name] = root / "out" / name
            export_transformers(mixtures[name], out[name])
        yield World(root, server, mixtures, out)


def push(api: HfApi, repo: str, folder: Path) -> str:
    api.create_repo(repo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # this Hub has none
        return api.upload_folder(repo_id=repo, folder_path=folder).oid


@pytest.fixture(scope="module")
def heard(world: World) -> dict[str, Tensor]:
    """What all exports say to a stranger: each from its folder by its README, two from the Hub."""
    program = ""
    for name, out in world.out.items():
        (block,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
        program += f"os.chdir({str(out)!r})\n{block}told[{name!r}] = RUN[{name!r}](model)\n"
    for name, auto in (("clip", "AutoModel"), ("t5", "AutoModelForSeq2SeqLM")):
        sha = push(world.api, f"demo/mixture-{name}", world.out[name])
        program += (
            f"model = {auto}.from_pretrained('demo/mixture-{name}', revision={sha!r}, "
            f"trust_remote_code=True)\n"
            f"told['hub-{name}'] = RUN[{name!r}](model)\n"
        )
    program += (
        f"again = {{'revision': {sha!r}, 'trust_remote_code': True, 'local_files_only': True}}\n"
        "AutoModelForSeq2SeqLM.from_pretrained('demo/mixture-t5', **again)\n"
        "again['dtype'] = 'bfloat16'\n"
        "half = AutoModelForSeq2SeqLM.from_pretrained('demo/mixture-t5', **again)\n"
        "assert RUN['t5'](half).dtype == torch.bfloat16\n"
        "print(sorted({'hubmerge', 'peft'} & set(sys.modules)))\n"
    )
    where = world.root / "told.safetensors"
    program += f"save_file({{n: t.detach() for n, t in told.items()}}, {str(where)!r})\n"
    done = world.run(program)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "hubmerge" not in done.stdout
    return load_file(where)


@pytest.mark.parametrize("name", [*FAMILIES, "hub-clip", "hub-t5"])
def test_a_stranger_hears_what_our_mixture_says(
    world: World, heard: dict[str, Tensor], name: str
) -> None:
    family = name.removeprefix("hub-")
    assert close(heard[name], said(family, world.mixtures[family].model.module))


def test_nobody_gets_the_bare_base_who_did_not_opt_in(world: World) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        CLIPModel.from_pretrained(world.out["clip"])
    assert AutoConfig.from_pretrained(world.out["clip"]).model_type == "clip"


def test_a_base_of_pickles_is_not_opened(world: World, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(world.root / "bases" / "vit" / "config.json", base)
    torch.save({}, base / "pytorch_model.bin")
    sha = push(world.api, "demo/pickled", base)
    out = tmp_path / "out"
    shutil.copytree(world.out["vit"], out)
    change_json(out / "moe_config.json", "base_model", value="demo/pickled")
    change_json(out / "moe_config.json", "base_revision", value=sha)
    done = world.run(f"AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True)")
    assert done.returncode == 1
    assert "OSError: demo/pickled does not appear to have a file named model.safetensors" in (
        " ".join(done.stderr.split())
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_model", "/etc/passwd"),
        ("base_model", "demo/../../tiny"),
        ("base_model", "demo/tiny/vit"),
        ("base_revision", "main"),
        ("base_revision", None),
        ("modules", ["layers.0.mlp.fc1", "layers..0"]),
        ("experts", [{"name": "../mnist"}]),
        ("experts", [{"name": "a..b"}]),
        ("experts", [{"name": "mnist\n"}]),
    ],
)
def test_names_that_lead_elsewhere_are_refused(
    world: World, tmp_path: Path, key: str, value: object
) -> None:
    out = tmp_path / "out"
    shutil.copytree(world.out["vit"], out)
    change_json(out / "moe_config.json", key, value=value)
    config = AutoConfig.from_pretrained(out)
    with pytest.raises(ValueError, match="cannot name what it should"):
        HubmergeMixture.from_pretrained(str(out), config=config)


@pytest.mark.parametrize("name", ["AutoModel", "pipeline", "torch", "nothing"])
def test_only_models_of_transformers_are_opened(world: World, name: str) -> None:
    config = AutoConfig.from_pretrained(world.out["vit"])
    config.architectures = [name]
    with pytest.raises(ValueError, match="is no model of transformers"):
        HubmergeMixture.from_pretrained(str(world.out["vit"]), config=config)


def test_the_code_that_goes_out_is_small_and_tame() -> None:
    text = Path(modeling_hubmerge_moe.__file__).read_text()
    assert len(text.splitlines()) <= 150
    nodes = list(ast.walk(ast.parse(text)))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} == {
        *("__future__", "json", "re", "typing", "torch", "safetensors", "transformers"),
    }
    calls = {
        node.func.id for node in nodes if isinstance(node, ast.Call) and hasattr(node.func, "id")
    }
    assert not calls & {"eval", "exec", "compile", "__import__"}


def test_an_export_is_a_mixture_to_hubmerge_too(world: World) -> None:
    base = world.root / "bases" / "vit"
    again = read_mixture(open_model(base, "image"), open_checkpoint(base), world.out["vit"])
    again.model.module.eval()
    assert again.config == world.mixtures["vit"].config
    assert close(said("vit", again.model.module), said("vit", world.mixtures["vit"].model.module))


def test_the_same_mixture_gives_the_same_files(world: World, tmp_path: Path) -> None:
    export_transformers(world.mixtures["t5"], tmp_path / "out")
    files = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*"))
    assert [str(file) for file in files] == [
        "README.md",
        "config.json",
        *(
            f"experts/{name}/{file}"
            for name in ("eurosat", "mnist", "svhn")
            for file in ("adapter_config.json", "adapter_model.safetensors")
        ),
        *("modeling_hubmerge_moe.py", "moe_config.json", "router.safetensors"),
    ]
    for file in files:
        data = (tmp_path / "out" / file).read_bytes()
        assert data == (world.out["t5"] / file).read_bytes()
        assert str(world.root).encode() not in data
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert (front["base_model"], front["library_name"]) == ("demo/tiny-t5", "transformers")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["T5ForConditionalGeneration"]
    reference = "modeling_hubmerge_moe.HubmergeMixture"
    assert config["auto_map"] == {"AutoModel": reference, "AutoModelForSeq2SeqLM": reference}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layout": "open_clip"}, "open_clip's layout"),
        ({"base_model": "/home/me/base"}, "is no commit on a Hub"),
        ({"base_revision": None}, "is no commit on a Hub"),
        ({"base_revision": "main"}, "is no commit on a Hub"),
    ],
)
def test_what_no_stranger_could_open_is_refused(
    world: World, tmp_path: Path, change: dict[str, str], why: str
) -> None:
    made = world.mixtures["bert"]
    made = dataclasses.replace(made, config=dataclasses.replace(made.config, **change))
    with pytest.raises(UsageError, match=why) as told:
        export_transformers(made, tmp_path / "out")
    assert told.value.hint
    assert list(tmp_path.iterdir()) == []
