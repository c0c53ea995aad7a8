"""The modules of embedding models: how they are read, and which ones are merged."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hubmerge.errors import CheckpointError
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan, check_checkpoints
from hubmerge.merging.registry import method
from hubmerge.model_files import side_files
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.embedding_match import find_adapter_stack_problems, stack_notes
from hubmerge.weights.embedding_modules import find_unknown_modules, read_stack
from tests.models.embedders import OLD, STACK, tiny_embedder, write_json, write_modules


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedder(tmp_path_factory.mktemp("embedder") / "base")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same modules with other weights, saved by a newer version."""
    folder = tmp_path_factory.mktemp("embedder") / "other"
    return tiny_embedder(folder, seed=1, is_new=True)


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def plan(base: Path, *experts: Path) -> MergePlan:
    averaging = method("average")
    listed = tuple(Expert(open_checkpoint(f), str(n), label=f.name) for n, f in enumerate(experts))
    return MergePlan(open_checkpoint(base), listed, averaging, averaging.params())


def problems(base: Path, *experts: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_checkpoints(plan(base, *experts))
    return f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("modes", ["mean", "cls", "max+mean", "lasttoken"])
def test_both_layouts_are_read_alike(tmp_path: Path, modes: str) -> None:
    stacks = []
    for is_new in (False, True):
        folder = tmp_path / str(is_new)
        folder.mkdir()
        write_modules(folder, STACK, modes, is_new)
        stacks.append(read_stack(folder))
    old, new = stacks
    assert old is not None
    assert new is not None
    assert old.modules == new.modules
    assert old.modules[1].settings["modes"] == modes.split("+")
    assert (old.max_tokens, new.max_tokens) == (48, None)


def test_the_weights_of_modules_are_tensors_of_the_checkpoint(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    assert {"2_Dense/linear.weight", "2_Dense/linear.bias"} <= set(checkpoint.names())
    assert checkpoint.weight_file_names() == ("2_Dense/model.safetensors", "model.safetensors")


@pytest.mark.parametrize("shard_size", [None, 30_000])
def test_the_weights_of_modules_are_merged_into_their_files(
    base: Path, other: Path, tmp_path: Path, shard_size: int | None
) -> None:
    averaged = dataclasses.replace(plan(base, base, other), shard_size=shard_size)
    merge(averaged, tmp_path / "merged")
    files = [load_file(f / "2_Dense/model.safetensors") for f in (base, other, tmp_path / "merged")]
    for name in ("linear.weight", "linear.bias"):
        first, second, merged = (file[name] for file in files)
        np.testing.assert_allclose(merged, (first + second) / 2, atol=1e-7)
    assert read_stack(tmp_path / "merged") is not None
    ours = side_files(p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file())
    assert all((tmp_path / "merged" / name).is_file() for name in ours)


def test_a_transformer_alone_keeps_the_modules_of_its_base(
    base: Path, copy: Path, tmp_path: Path
) -> None:
    shutil.rmtree(copy / "2_Dense")
    (copy / "modules.json").unlink()
    check_checkpoints(plan(base, copy, base))
    [vector, _] = plan(base, copy, base).vectors
    assert set(vector.full.kept) == {"2_Dense/linear.bias", "2_Dense/linear.weight"}


def test_other_modules_are_refused_by_name(base: Path, copy: Path) -> None:
    write_modules(copy, STACK, "cls")
    assert "copy has the module Pooling(modes=['cls']" in problems(base, copy)
    write_modules(copy, ("Transformer", "Pooling", "Normalize"))
    text = problems(base, copy)
    assert "the modules Transformer Pooling Normalize, and the base has" in text


def test_modules_with_weights_need_them_in_the_base(base: Path, copy: Path) -> None:
    (copy / "modules.json").unlink()
    shutil.rmtree(copy / "2_Dense")
    assert "has 2_Dense/model.safetensors, which the base does not have" in problems(copy, base)


@pytest.mark.parametrize(("kind", "sentence"), [
    ("custom_code.Pooling", "runs code of its own"),
    (f"{OLD}.CLIPModel", "the module CLIPModel, which is not supported"),
    (f"{OLD}.Router", "the module Router, which is not supported"),
])  # fmt: skip
def test_unknown_modules_are_refused_by_name(
    base: Path, copy: Path, kind: str, sentence: str
) -> None:
    write_json(copy / "modules.json", [
        {"path": "", "type": f"{OLD}.Transformer"}, {"path": "1_Pooling", "type": kind},
    ])  # fmt: skip
    text = problems(base, copy)
    assert sentence in text
    assert "modules.json" in text


def test_a_module_outside_the_folder_is_refused(copy: Path) -> None:
    write_json(copy / "modules.json", [{"path": "../other", "type": f"{OLD}.Dense"}])
    with pytest.raises(CheckpointError, match="not a subfolder"):
        open_checkpoint(copy)


def test_pickled_modules_and_old_transformers_have_a_way_out(copy: Path) -> None:
    (copy / "2_Dense/model.safetensors").rename(copy / "2_Dense/pytorch_model.bin")
    with pytest.raises(CheckpointError, match="2_Dense has its weights only as pickles") as caught:
        open_checkpoint(copy)
    assert "save_pretrained" in str(caught.value.hint)
    (copy / "2_Dense/pytorch_model.bin").unlink()
    (copy / "model.safetensors").unlink()
    write_json(copy / "modules.json", [{"path": "0_Transformer", "type": f"{OLD}.Transformer"}])
    with pytest.raises(CheckpointError, match="has its transformer in 0_Transformer"):
        open_checkpoint(copy)


@pytest.mark.parametrize("text", ["{}", "[", '["Pooling"]'])
def test_damaged_lists_of_modules_are_refused(copy: Path, text: str) -> None:
    (copy / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        open_checkpoint(copy)


def test_other_prompts_and_lengths_are_noted(base: Path, copy: Path) -> None:
    write_modules(copy, max_tokens=32, prompts={"query": "query: "}, similarity_fn_name="dot")
    [note] = stack_notes(base, copy, "copy")
    assert note.startswith("copy has prompts, a similarity, a max_seq_length unlike the base")
    assert not list(stack_notes(base, base, "base"))


def test_an_adapter_with_other_modules_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(base, tmp_path / "adapter"))
    assert not list(find_adapter_stack_problems(base, adapter, "adapter"))
    file = adapter / "2_Dense/model.safetensors"
    save_file({name: array + 1 for name, array in load_file(file).items()}, file)
    [(problem, _)] = find_adapter_stack_problems(base, adapter, "adapter")
    assert problem == "adapter has other weights than the base in 2_Dense/model.safetensors."


def test_known_modules_have_no_problems(base: Path) -> None:
    stack = read_stack(base)
    assert stack is not None
    assert not list(find_unknown_modules(stack))
    assert not stack.is_plain
