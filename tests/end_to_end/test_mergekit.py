"""hubmerge merge --config and --export-mergekit, with models on the embedded Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from hubmerge.durable import hash_file
from hubmerge.weights.checkpoint import open_checkpoint
from tests.compat.mergekit_models import write_models
from tests.end_to_end.conftest import Command, LocalHub

CONFIGS = Path(__file__).parents[1] / "compat" / "mergekit_configs"


@pytest.fixture(scope="module")
def models(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of transformers in repositories of one owner, and in folders."""
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    for name in ("base", "alpha", "beta", "gamma", "tall"):
        api.create_repo(f"kit/{name}", exist_ok=True)
        api.upload_folder(repo_id=f"kit/{name}", folder_path=root / name)
        api.create_tag(f"kit/{name}", tag="v1")
    return root


def on_the_hub(name: str, folder: Path) -> Path:
    """A configuration with the repositories in place of the folders."""
    text = (CONFIGS / f"{name}.yml").read_text()
    for model in ("base", "alpha", "beta", "gamma", "tall"):
        text = text.replace(f"./{model}\n", f"kit/{model}@v1\n")
    path = folder / "config.yml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", [
    "ties-gradient", "frankenmerge", "slices-upscaled-linear",
    *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "slices-by-layers", "slices-of-other-layers", "slices-upscaled-ties", "block-expansion",
        "linear",
    )),
])  # fmt: skip
def test_a_merge_can_be_made_again(
    name: str, models: Path, hubmerge: Command, tmp_path: Path
) -> None:
    """From its manifest, and with the command on its card, from the file beside it."""
    out = tmp_path / "merged"
    path = on_the_hub(name, tmp_path)
    assert hubmerge("merge", "--config", path, "--out", out).code == 0
    result = hubmerge("verify", out, "--rebuild", "--json")
    assert (result.code, [c["problem"] for c in result.data if c["problem"]]) == (0, [])
    assert "rebuilt model.safetensors" in {check["what"] for check in result.data}
    assert "hubmerge merge --config mergekit_config.yml" in (out / "README.md").read_text()
    again = hubmerge("merge", "-c", out / "mergekit_config.yml", "--out", tmp_path / "again")
    assert again.code == 0
    first, second = (open_checkpoint(folder).digest() for folder in (out, tmp_path / "again"))
    assert first == second
    assert "nothing to merge" not in again.out


def test_the_recipe_names_the_layers(models: Path, hubmerge: Command, tmp_path: Path) -> None:
    recipes = set()
    for layers in ("[0, 3]", "[1, 4]"):
        path = tmp_path / "config.yml"
        path.write_text(
            "merge_method: passthrough\nslices: [{sources: [{model: kit/alpha, layer_range: "
            f"{layers}}}]}}, {{sources: [{{model: kit/beta, layer_range: [0, 2]}}]}}]\n"
        )
        result = hubmerge("merge", "-c", path, "--dry-run", "--json")
        assert result.code == 0
        recipes.add(result.data["recipe"])
    assert len(recipes) == 2


def test_a_merge_is_the_same_with_options(models: Path, hubmerge: Command, tmp_path: Path) -> None:
    """Of a configuration without slices, and of one written by --export-mergekit."""
    path = tmp_path / "config.yml"
    words = ("kit/alpha@v1", "kit/beta@v1", "--base", "kit/base@v1", "--method", "ties_mergekit",
             "--set", "density=0.4", "--set", "weight[mlp]=1,[0.5,2]")  # fmt: skip
    merged = hubmerge("merge", *words, "--export-mergekit", path, "--out", tmp_path / "a", "--json")
    assert merged.code == 0
    assert yaml.safe_load(path.read_text())["models"][0]["model"].startswith("kit/alpha@")
    again = hubmerge("merge", "-c", path, "--out", tmp_path / "b", "--json")
    assert again.code == 0
    digests = {open_checkpoint(tmp_path / name).digest() for name in "ab"}
    assert len(digests) == 1
    assert merged.data["params"]["density"] == again.data["params"]["density"] == 0.4


def test_another_base_in_a_manifest_is_a_note(
    models: Path, hubmerge: Command, tmp_path: Path
) -> None:
    """mergekit does not care where a model comes from; who reads the card should know."""
    manifest = {
        "kind": "expert", "files": {},
        "base": {"label": "other/model@v1", "sha": "1" * 40, "digest": "2" * 64},
    }  # fmt: skip
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        (copy / name).write_bytes((models / "alpha" / name).read_bytes())
    manifest["files"] = {
        name: hash_file(copy / name) for name in ("config.json", "model.safetensors")
    }
    (copy / "hubmerge.json").write_text(json.dumps(manifest))
    path = tmp_path / "config.yml"
    path.write_text(
        "merge_method: task_arithmetic\nbase_model: kit/base\nparameters: {weight: 1}\n"
        f"models: [{{model: {copy}}}]\n"
    )
    result = hubmerge("merge", "-c", path, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert any("was fine-tuned from other/model@v1" in note for note in result.data["notes"])


def test_options_that_a_configuration_decides_are_refused(
    models: Path, hubmerge: Command, tmp_path: Path
) -> None:
    path = on_the_hub("linear", tmp_path)
    result = hubmerge("merge", "kit/alpha", "-c", path, "--method", "ties", "--set", "density=1")
    assert result.code == 2
    assert "experts, --method, --set cannot be given as well" in " ".join(result.err.split())
    assert hubmerge("merge", "-c", path, "--locked").code == 2
    missing = hubmerge("merge", "-c", tmp_path / "missing.yml")
    assert (missing.code, "cannot be read" in missing.err) == (2, True)


def test_problems_are_reported_before_anything_is_fetched(
    hubmerge: Command, tmp_path: Path
) -> None:
    path = tmp_path / "config.yml"
    path.write_text(
        "merge_method: ties\nbase_model: nobody/base\nparameters: {densty: 1}\ndtipe: x\n"
        "models: [{model: nobody/a}]\n"
    )
    result = hubmerge("merge", "-c", path)
    assert result.code == 2
    text = " ".join(result.err.split())
    assert "did you mean 'dtype'" in text


def test_layers_from_several_places_are_no_adapter(
    models: Path, hubmerge: Command, tmp_path: Path
) -> None:
    words = ("--as-lora", "4", "--out", tmp_path / "out")
    refused = hubmerge("merge", "--config", on_the_hub("frankenmerge", tmp_path), *words)
    assert (refused.code, "an adapter cannot do that" in refused.err) == (2, True)
    assert not (tmp_path / "out").exists()
    path = on_the_hub("ties-gradient", tmp_path)
    assert hubmerge("merge", "--config", path, *words).code == 0
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert hubmerge("verify", tmp_path / "out", "--rebuild").code == 0


def test_layers_from_several_places_are_written_in_shards(
    models: Path, hubmerge: Command, tmp_path: Path
) -> None:
    path, out = on_the_hub("frankenmerge", tmp_path), tmp_path / "out"
    assert hubmerge("merge", "-c", path, "--shard-size", "2kB", "--out", out).code == 0
    assert len(open_checkpoint(out).weight_file_names()) > 1
    assert hubmerge("verify", out, "--rebuild").code == 0
