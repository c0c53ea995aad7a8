"""Exports as used without hubmerge: with transformers, from a folder or from a Hub."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, CLIPModel

from hubmerge.errors import UsageError
from hubmerge.models.loading import load_model
from hubmerge.moerging.export import export_transformers
from hubmerge.moerging.moe_model import MoeModel, read_moe
from hubmerge.moerging.remote_code import modeling_hubmerge_moe
from hubmerge.moerging.remote_code.modeling_hubmerge_moe import HubmergeMixture
from hubmerge.server import ServerState, lease
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import RouterConfig
from tests.models.builders import change_json
from tests.moerging.small_moes import FAMILIES, IMAGES, TEXT, is_close, make_moe, predict

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft's own
SIGNED = RouterConfig(signed=True, temperature=2.0)
ROUTERS = {"vit": SIGNED, "llama": SIGNED}  # the others have |R x| / 0.5
# How each family is run, for a process that cannot import the tests.
PREAMBLE = """
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
outputs = {}
"""


@dataclass(frozen=True)
class ExportedModels:
    """A Hub with every base, and a mixture for each with its export in `exports[name]`."""

    root: Path
    server: ServerState
    moes: dict[str, MoeModel]
    exports: dict[str, Path]

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.server.url, token=self.server.token)

    def run(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run a program in a new home directory that uses this Hub without an account."""
        home = self.root / f"home-{len(list(self.root.glob('home-*')))}"
        home.mkdir()
        save_file({"images": IMAGES, **TEXT}, home / "inputs.safetensors")
        environment = {
            **{key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS")},
            **{"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": self.server.url},
        }
        return subprocess.run(
            [sys.executable, "-I", "-c", PREAMBLE + program],
            cwd=home, env=environment, capture_output=True, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExportedModels]:
    root = tmp_path_factory.mktemp("exported")
    with lease(root / "hub") as server:
        exported = ExportedModels(root, server, {}, {})
        for name, family in FAMILIES.items():
            base, repo = root / "bases" / name, f"demo/tiny-{name}"
            family.write_base(base)
            sha = push(exported.api, repo, base)
            options = {"router": ROUTERS[name]} if name in ROUTERS else {}
            exported.moes[name] = make_moe(
                name, base, root / "moes" / name, pinned=(repo, sha), **options
            )
            exported.exports[name] = root / "exports" / name
            export_transformers(exported.moes[name], exported.exports[name])
        yield exported


def push(api: HfApi, repo: str, folder: Path) -> str:
    api.create_repo(repo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # this Hub has none
        return api.upload_folder(repo_id=repo, folder_path=folder).oid


# The others are run by `make test-slow`: a process for these, and one for those.
FAST = ("clip", "hub-t5")
SLOW = (*(name for name in FAMILIES if name != "clip"), "hub-clip")


@pytest.fixture(scope="module")
def outputs(exported: ExportedModels) -> Callable[[tuple[str, ...]], dict[str, Tensor]]:
    """The outputs of some exports in another process, run once."""
    return cache(partial(run_exports, exported))


def run_exports(exported: ExportedModels, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Outputs in another process, by the README of each export, or from the Hub for `hub-`."""
    program = ""
    for name in names:
        if name.startswith("hub-"):
            continue
        out = exported.exports[name]
        (block,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
        program += f"os.chdir({str(out)!r})\n{block}outputs[{name!r}] = RUN[{name!r}](model)\n"
    for name, auto in (("clip", "AutoModel"), ("t5", "AutoModelForSeq2SeqLM")):
        if f"hub-{name}" not in names:
            continue
        sha = push(exported.api, f"demo/moe-{name}", exported.exports[name])
        program += (
            f"model = {auto}.from_pretrained('demo/moe-{name}', revision={sha!r}, "
            f"trust_remote_code=True)\n"
            f"outputs['hub-{name}'] = RUN[{name!r}](model)\n"
        )
        if name == "t5":
            program += (
                f"again = {{'revision': {sha!r}, 'trust_remote_code': True}}\n"
                "again['local_files_only'] = True\n"
                f"{auto}.from_pretrained('demo/moe-t5', **again)\n"
                "again['dtype'] = 'bfloat16'\n"
                f"half = {auto}.from_pretrained('demo/moe-t5', **again)\n"
                "assert RUN['t5'](half).dtype == torch.bfloat16\n"
            )
    program += "print(sorted({'hubmerge', 'peft'} & set(sys.modules)))\n"
    where = exported.root / f"outputs-{names[0]}.safetensors"
    program += f"save_file({{n: t.detach() for n, t in outputs.items()}}, {str(where)!r})\n"
    done = exported.run(program)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "hubmerge" not in done.stdout
    return load_file(where)


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_export_has_the_outputs_of_the_moe(
    exported: ExportedModels, outputs: Callable[[tuple[str, ...]], dict[str, Tensor]], name: str
) -> None:
    family = name.removeprefix("hub-")
    found = outputs(FAST if name in FAST else SLOW)
    assert is_close(found[name], predict(family, exported.moes[family].model.module))


def test_export_does_not_open_without_trust_remote_code(exported: ExportedModels) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        CLIPModel.from_pretrained(exported.exports["clip"])
    assert AutoConfig.from_pretrained(exported.exports["clip"]).model_type == "clip"


@pytest.mark.slow
def test_base_of_pickles_is_not_opened(exported: ExportedModels, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(exported.root / "bases" / "vit" / "config.json", base)
    torch.save({}, base / "pytorch_model.bin")
    sha = push(exported.api, "demo/pickled", base)
    out = tmp_path / "out"
    shutil.copytree(exported.exports["vit"], out)
    change_json(out / "moe_config.json", "base_model", value="demo/pickled")
    change_json(out / "moe_config.json", "base_revision", value=sha)
    done = exported.run(f"AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True)")
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
def test_invalid_names_are_rejected(
    exported: ExportedModels, tmp_path: Path, key: str, value: object
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported.exports["vit"], out)
    change_json(out / "moe_config.json", key, value=value)
    config = AutoConfig.from_pretrained(out)
    with pytest.raises(ValueError, match="is not a valid name"):
        HubmergeMixture.from_pretrained(str(out), config=config)


@pytest.mark.parametrize("name", ["AutoModel", "pipeline", "torch", "nothing"])
def test_only_models_of_transformers_are_opened(exported: ExportedModels, name: str) -> None:
    config = AutoConfig.from_pretrained(exported.exports["vit"])
    config.architectures = [name]
    with pytest.raises(ValueError, match="is not a model of transformers"):
        HubmergeMixture.from_pretrained(str(exported.exports["vit"]), config=config)


def test_exported_code_is_short_and_imports_little() -> None:
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


def test_hubmerge_reads_an_export(exported: ExportedModels) -> None:
    base = exported.root / "bases" / "vit"
    again = read_moe(load_model(base, "image"), open_checkpoint(base), exported.exports["vit"])
    again.model.module.eval()
    assert again.config == exported.moes["vit"].config
    assert is_close(
        predict("vit", again.model.module), predict("vit", exported.moes["vit"].model.module)
    )


def test_exporting_twice_gives_the_same_files(exported: ExportedModels, tmp_path: Path) -> None:
    export_transformers(exported.moes["t5"], tmp_path / "out")
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
        assert data == (exported.exports["t5"] / file).read_bytes()
        assert str(exported.root).encode() not in data
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert (front["base_model"], front["library_name"]) == ("demo/tiny-t5", "transformers")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["T5ForConditionalGeneration"]
    reference = "modeling_hubmerge_moe.HubmergeMixture"
    assert config["auto_map"] == {"AutoModel": reference, "AutoModelForSeq2SeqLM": reference}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layout": "open_clip"}, "open_clip's layout"),
        ({"base_model": "/home/me/base"}, "is not a commit on a Hub"),
        ({"base_revision": None}, "is not a commit on a Hub"),
        ({"base_revision": "main"}, "is not a commit on a Hub"),
    ],
)
def test_moe_that_could_not_be_opened_is_not_exported(
    exported: ExportedModels, tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    moe = exported.moes["bert"]
    moe = dataclasses.replace(moe, config=dataclasses.replace(moe.config, **change))
    with pytest.raises(UsageError, match=reason) as caught:
        export_transformers(moe, tmp_path / "out")
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []
