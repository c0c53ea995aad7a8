"""Models whose layers are taken from others: names are new, values and places are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.layer_config import stacked_config
from hubmerge.weights.layer_names import count_layers, in_layer, part_of_rest
from hubmerge.weights.layer_stack import LayerSource, layer_count, stack_layers
from hubmerge.weights.stack_files import create_stack_files


def write(folder: Path, value: int, names: list[str], files: int = 1) -> Checkpoint:
    """Tensors filled with the model's value and the number of the tensor."""
    folder.mkdir()
    values = {n: np.full((20, 20), 100 * value + i, np.float32) for i, n in enumerate(names)}
    if files == 1:
        save_file(values, folder / "model.safetensors")
        return open_checkpoint(folder)
    weight_map = {}
    for number in range(files):
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = {tensor: values[tensor] for tensor in names[number::files]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = str({"weight_map": weight_map}).replace("'", '"')
    (folder / "model.safetensors.index.json").write_text(index)
    return open_checkpoint(folder)


NAMES = ["wte.weight", "h.0.mlp.weight", "h.1.mlp.weight", "h.2.mlp.weight", "ln_f.weight"]


def test_layers_are_renamed_and_the_rest_is_that_of_the_ends(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", 1, NAMES), write(tmp_path / "two", 2, NAMES)
    sources = [LayerSource(one, 2), LayerSource(two, 0), LayerSource(two, 0), LayerSource(two, 1)]
    stacked = stack_layers(sources)
    assert {name: int(stacked.read(name)[0, 0]) for name in stacked.names()} == {
        "wte.weight": 100, "h.0.mlp.weight": 103, "h.1.mlp.weight": 201, "h.2.mlp.weight": 201,
        "h.3.mlp.weight": 202, "ln_f.weight": 204,
    }  # fmt: skip
    assert stacked.index["h.0.mlp.weight"] == one.index["h.2.mlp.weight"]


def test_values_that_are_computed_move_too(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 1, NAMES)
    view = one.with_views({NAMES[3]: (one.index[NAMES[3]], lambda: np.zeros((20, 20), np.float32))})
    stacked = stack_layers([LayerSource(view, 2), LayerSource(view, 1)])
    assert [stacked.read(f"h.{n}.mlp.weight")[0, 0] for n in (0, 1)] == [0, 102]


def test_shards_are_cut_anew(tmp_path: Path) -> None:
    """As large as the largest of the base, in the order of the layers."""
    one = write(tmp_path / "one", 1, NAMES, files=3)
    stacked = stack_layers([LayerSource(one, n) for n in (0, 1, 2, 2, 1, 0)])
    (tmp_path / "out").mkdir()
    created = create_stack_files(stacked, tmp_path / "out")
    assert list(created) == list(stacked.names())
    assert open_checkpoint(tmp_path / "out").index == created
    limit = max(file.stat().st_size for file in (tmp_path / "one").glob("*.safetensors"))
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(sum(t.nbytes for t in created.values() if t.file == f) <= limit for f in shards)


def test_a_model_needs_one_stack_of_layers(tmp_path: Path) -> None:
    assert layer_count(write(tmp_path / "one", 1, NAMES)) == 3
    both = write(tmp_path / "both", 1, ["encoder.block.0.w.weight", "decoder.block.0.w.weight"])
    with pytest.raises(CheckpointError, match="has not one stack of layers but decoder"):
        layer_count(both)


def test_names() -> None:
    assert in_layer("model.layers.3.mlp.experts.5.w1", 12) == "model.layers.12.mlp.experts.5.w1"
    assert count_layers(["h.0.w", "h.11.w", "vision.0.w", "norm"]) == {"h.": 12, "vision.": 1}
    assert part_of_rest("gpt_neox.embed_in.weight") == "before"
    assert part_of_rest("embed_out.weight") == "after"


@pytest.mark.parametrize(("config", "expected"), [
    ({"num_hidden_layers": 3, "x": 1}, {"num_hidden_layers": 4, "x": 1}),
    ({"n_layer": 3}, {"n_layer": 4}),
    ({"num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "sliding_window_pattern": 3},
     {"num_hidden_layers": 4, "layer_types": ["a", "c", "c", "b"], "sliding_window_pattern": 3}),
    ({"text_config": {"num_hidden_layers": 3}}, {"text_config": {"num_hidden_layers": 4}}),
    ({"num_hidden_layers": 3, "max_window_layers": 2, "use_sliding_window": False},
     {"num_hidden_layers": 4, "max_window_layers": 2, "use_sliding_window": False}),
    ({"num_hidden_layers": 3, "mlp_only_layers": [], "decoder_sparse_step": 1},
     {"num_hidden_layers": 4, "mlp_only_layers": [], "decoder_sparse_step": 1}),
])  # fmt: skip
def test_the_configuration_follows(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert stacked_config(config, [(config, n) for n in (0, 2, 2, 1)]) == expected


@pytest.mark.parametrize(("config", "problem"), [
    ({"num_hidden_layers": 3, "max_window_layers": 2, "use_sliding_window": True},
     "max_window_layers: 2"),
    ({"num_hidden_layers": 3, "first_k_dense_replace": 1}, "first_k_dense_replace"),
    ({"num_hidden_layers": 3, "full_attention_interval": 4}, "full_attention_interval: 4"),
    ({"num_hidden_layers": 3, "odd_layers": [1, 0, 1]}, "odd_layers: [1, 0, 1]"),
    ({"num_hidden_layers": 3, "layer_types": ["a"]}, "layer_types, and that of another model"),
    ({"hidden_size": 3}, "config.json has none of num_hidden_layers"),
])  # fmt: skip
def test_what_depends_on_the_numbers_of_layers_is_refused(
    config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        stacked_config(config, [(config, n) for n in (0, 2, 2, 1)])
    assert problem in caught.value.message
