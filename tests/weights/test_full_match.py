"""Full experts saved under other names than their base, with more tensors or with fewer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import save_file

from hubmerge.errors import UsageError
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.dtypes import Array
from hubmerge.weights.full_match import FullMatch, match_full
from hubmerge.weights.match_options import MatchOptions
from hubmerge.weights.task_vector import TaskVector
from hubmerge.weights.ties import separate_head

ROW, MATRIX = np.arange(3, dtype=np.float32), np.ones((4, 3), np.float32)
LLAMA = {
    "model.embed_tokens.weight": MATRIX,
    "model.layers.0.mlp.weight": MATRIX.T.copy(),
    "model.norm.weight": ROW,
}
TIED = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
Match = Callable[..., FullMatch]


def write(folder: Path, tensors: Mapping[str, Array], config: dict[str, Any]) -> Checkpoint:
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


@pytest.fixture
def match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Match:
    """Match an expert with a base by headers alone."""

    def match(
        base: Mapping[str, Array], expert: Mapping[str, Array], config: dict[str, Any] = TIED
    ) -> FullMatch:
        pair = write(tmp_path / "base", base, config), write(tmp_path / "expert", expert, config)
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
            return match_full(*pair, "me")

    return match


def without(names: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): tensor for name, tensor in names.items()}


def within(names: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {prefix + name: tensor for name, tensor in names.items()}


@pytest.mark.parametrize(
    "expert",
    [
        without(LLAMA, "model."),
        within(LLAMA, "_orig_mod."),
        within(LLAMA, "module._orig_mod."),
        within(LLAMA, "base_model.model."),
        within(LLAMA, "transformer."),
        {name.replace("layers.0.", "layers.0._orig_mod."): t for name, t in LLAMA.items()},
    ],
    ids=["inner", "compiled", "both", "peft", "outer", "compiled-layers"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_prefixes_on_either_side(match: Match, expert: dict[str, Array], swapped: bool) -> None:
    pair = (expert, LLAMA) if swapped else (LLAMA, expert)
    found = match(*pair)
    assert not found.problems
    assert sorted(found.names.values()) == sorted(pair[1])
    assert (found.kept, found.left_out) == ((), ())
    assert len(list(found.notes("me"))) == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_names_of_before_and_of_transformers_5(match: Match, swapped: bool) -> None:
    old = LLAMA | {"visual.patch.weight": MATRIX * 2}
    new = {f"model.language_model.{name.removeprefix('model.')}": t for name, t in LLAMA.items()}
    new |= {"model.visual.patch.weight": MATRIX}
    pair = (new, old) if swapped else (old, new)
    found = match(*pair, {"architectures": ["Qwen2VLForConditionalGeneration"]})
    assert not found.problems
    renamed = {"visual.patch.weight": "model.visual.patch.weight",
               "model.norm.weight": "model.language_model.norm.weight"}  # fmt: skip
    for one, other in renamed.items():
        assert found.names[other if swapped else one] == (one if swapped else other)


def test_old_names_of_norms(match: Match) -> None:
    old = {"bert.LayerNorm.gamma": ROW, "bert.LayerNorm.beta": ROW + 1}
    found = match(old, {"bert.LayerNorm.weight": ROW, "bert.LayerNorm.bias": ROW})
    assert found.names["bert.LayerNorm.gamma"] == "bert.LayerNorm.weight"
    assert not found.problems


def test_both_names_of_weight_normalisation(match: Match) -> None:
    new = {"conv.parametrizations.weight.original0": ROW,
           "conv.parametrizations.weight.original1": MATRIX}  # fmt: skip
    found = match({"conv.weight_g": ROW, "conv.weight_v": MATRIX}, new)
    assert not found.problems
    assert list(found.names.values()) == list(new)


def test_buffers_are_never_merged(match: Match) -> None:
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": ROW}
    mask = {"model.layers.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)}
    found = match(LLAMA | frequencies, LLAMA | mask)
    assert (found.kept, found.left_out) == (tuple(frequencies), tuple(mask))
    assert not found.problems


def test_a_bias_of_attention_is_no_buffer(match: Match) -> None:
    found = match(LLAMA | {"model.layers.0.attn.bias": ROW}, LLAMA)
    assert [text for text, _ in found.problems] == [
        "me lacks 1 tensor (model.layers.0.attn.bias) of the base."
    ]


def test_a_tied_head_on_one_side(match: Match, tmp_path: Path) -> None:
    head = {"lm_head.weight": MATRIX}
    found = match(LLAMA, LLAMA | head)
    assert found.copies == {"lm_head.weight": "model.embed_tokens.weight"}
    assert (found.left_out, found.problems) == (("lm_head.weight",), ())
    vector = TaskVector(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "expert"))
    assert list(vector.unequal_copies()) == []
    other = write(tmp_path / "other", LLAMA | {"lm_head.weight": MATRIX + 1}, TIED)
    unequal = [pair for _, *pair in TaskVector(vector.base, other).unequal_copies()]
    assert unequal == [["lm_head.weight", "model.embed_tokens.weight"]]
    kept_out = TaskVector(vector.base, other, MatchOptions(tied="base"))
    assert list(kept_out.unequal_copies()) == []
    assert kept_out.full.left_out == ("lm_head.weight",)


def test_a_tied_head_that_only_the_base_stores(match: Match, tmp_path: Path) -> None:
    found = match(LLAMA | {"lm_head.weight": MATRIX}, LLAMA)
    assert found.names["lm_head.weight"] == "model.embed_tokens.weight"
    assert not found.problems
    base = write(tmp_path / "unequal", LLAMA | {"lm_head.weight": MATRIX + 1}, TIED)
    vector = TaskVector(base, open_checkpoint(tmp_path / "expert"))
    assert [checkpoint for checkpoint, *_ in vector.unequal_copies()] == [base]


def test_a_tied_head_that_both_store_with_other_values(match: Match, tmp_path: Path) -> None:
    both = LLAMA | {"lm_head.weight": MATRIX}
    match(both, both)
    base = open_checkpoint(tmp_path / "base")
    other = write(tmp_path / "other", LLAMA | {"lm_head.weight": MATRIX + 1}, TIED)
    unequal = [pair for _, *pair in TaskVector(base, other).unequal_copies()]
    assert unequal == [["lm_head.weight", "model.embed_tokens.weight"]]
    vector = TaskVector(base, other, MatchOptions(tied="base"))
    assert not list(vector.unequal_copies())
    assert not vector.delta("lm_head.weight").any()
    assert TaskVector(base, other, MatchOptions(tied="untie")).delta("lm_head.weight").all()


def test_a_head_that_the_experts_configuration_does_not_tie(tmp_path: Path) -> None:
    base = write(tmp_path / "base", LLAMA, TIED)
    untied = TIED | {"tie_word_embeddings": False}
    expert = write(tmp_path / "expert", LLAMA | {"lm_head.weight": MATRIX + 1}, untied)
    assert len(list(TaskVector(base, expert).unequal_copies())) == 1
    separated = separate_head(base, [expert], untie=True)
    assert separated is not None
    vector = TaskVector(separated.base, expert, MatchOptions(tied="untie"))
    assert not list(vector.unequal_copies())
    assert (vector.delta("lm_head.weight") == 1).all()
    with pytest.raises(UsageError, match="no tied head"):
        separate_head(write(tmp_path / "apart", LLAMA, untied), [], untie=True)


T5 = {"shared.weight": MATRIX, "encoder.block.0.layer.0.SelfAttention.q.weight": MATRIX.T.copy()}
COPIES = {"encoder.embed_tokens.weight": MATRIX, "decoder.embed_tokens.weight": MATRIX}
BERT = {
    "bert.embeddings.word_embeddings.weight": MATRIX,
    "cls.predictions.bias": ROW,
    "cls.predictions.transform.dense.weight": MATRIX.T.copy(),
}
DECODERS = {"cls.predictions.decoder.weight": MATRIX, "cls.predictions.decoder.bias": ROW}


@pytest.mark.parametrize(
    ("tensors", "copies", "kind"),
    [(T5, COPIES, "T5ForConditionalGeneration"), (BERT, DECODERS, "BertForMaskedLM")],
)
@pytest.mark.parametrize("base_has", [False, True])
def test_other_tensors_that_are_stored_twice(
    match: Match,
    tensors: dict[str, Array],
    copies: dict[str, Array],
    kind: str,
    base_has: bool,
) -> None:
    pair = (tensors | copies, tensors) if base_has else (tensors, tensors | copies)
    found = match(*pair, {"architectures": [kind]})
    assert not found.problems
    assert sorted(found.base_copies if base_has else found.copies) == sorted(copies)
    assert sorted(found.left_out) == ([] if base_has else sorted(copies))


def test_a_head_that_is_not_tied_is_kept(match: Match) -> None:
    found = match(LLAMA | {"lm_head.weight": MATRIX}, LLAMA, TIED | {"tie_word_embeddings": False})
    assert (found.kept, found.problems) == (("lm_head.weight",), ())


def test_an_unknown_head_is_refused(match: Match) -> None:
    untied = TIED | {"tie_word_embeddings": False}
    found = match(LLAMA, LLAMA | {"lm_head.weight": MATRIX}, untied)
    assert [text for text, _ in found.problems] == [
        "me has 1 tensor (lm_head.weight) that the base does not have."
    ]


def test_one_part_of_the_base(match: Match) -> None:
    tower = {"embeddings.weight": MATRIX, "layers.0.weight": ROW}
    text = {"text_model.embeddings.weight": ROW, "logit_scale": ROW[:1]}
    found = match(within(tower, "vision_model.") | text, tower)
    assert not found.problems
    assert sorted(found.kept) == sorted(text)


def test_a_part_that_fits_twice_is_refused(match: Match) -> None:
    tower = {"layers.0.weight": ROW}
    found = match(within(tower, "vision_model.") | within(tower, "text_model."), tower)
    assert [text for text, _ in found.problems] == [
        "me fits several parts of the base: 'text_model.' or 'vision_model.'."
    ]
    assert "architectures" in found.problems[0][1]


def test_the_class_tells_which_part_it_is(tmp_path: Path) -> None:
    tower = {"layers.0.weight": ROW}
    both = within(tower, "vision_model.") | within(tower, "text_model.")
    base = write(tmp_path / "base", both, {"architectures": ["CLIPModel"]})
    for part, name in (("vision", "CLIPVisionModel"), ("text", "CLIPTextModel")):
        expert = write(tmp_path / part, tower, {"architectures": [name]})
        found = match_full(base, expert, "me")
        assert dict(found.names) == {f"{part}_model.layers.0.weight": "layers.0.weight"}


def test_a_lost_layer_is_refused(match: Match) -> None:
    found = match(LLAMA, {n: t for n, t in LLAMA.items() if "layers" not in n})
    assert [text for text, _ in found.problems] == [
        "me lacks 1 tensor (model.layers.0.mlp.weight) of the base."
    ]


def test_one_tensor_under_two_names_is_refused(match: Match) -> None:
    found = match(LLAMA, LLAMA | {"module.model.norm.weight": ROW})
    assert "under two names" in found.problems[0][0]
    assert "save it again" in found.problems[0][1]


@pytest.mark.parametrize(
    ("name", "shape", "option"),
    [
        ("model.embed_tokens.weight", (6, 3), "--vocabulary union"),
        ("score.weight", (5, 3), "--heads keep"),
        ("classifier.weight", (4, 3), "--heads drop"),
    ],
)
def test_the_option_that_decides_is_named(
    match: Match, name: str, shape: tuple[int, int], option: str
) -> None:
    base = LLAMA | {"score.weight": MATRIX}
    [(text, hint)] = match(base, base | {name: np.zeros(shape, np.float32)}).problems
    assert name in text
    assert option in hint


@pytest.mark.parametrize("heads", ["keep", "drop"])
def test_heads_of_tasks_are_not_merged(tmp_path: Path, heads: Literal["keep", "drop"]) -> None:
    own = {"score.weight": MATRIX[:2], "pooler.dense.weight": MATRIX}
    base = write(tmp_path / "base", LLAMA | {"score.weight": MATRIX}, TIED)
    expert = write(tmp_path / "expert", without(LLAMA, "model.") | own, TIED)
    found = match_full(base, expert, "me", MatchOptions(heads=heads))
    assert not found.problems
    assert sorted(found.head) == sorted(found.left_out) == sorted(own)
    assert found.kept == ("score.weight",)
    assert any("head of its own" in note for note in found.notes("me"))


def test_heads_are_left_out_even_if_all_names_agree(tmp_path: Path) -> None:
    tensors = LLAMA | {"score.weight": MATRIX}
    pair = write(tmp_path / "base", tensors, TIED), write(tmp_path / "expert", tensors, TIED)
    assert match_full(*pair, "me").names == {name: name for name in tensors}
    assert match_full(*pair, "me", MatchOptions(heads="keep")).head == ("score.weight",)
