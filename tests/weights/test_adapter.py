"""Every reason why an adapter cannot be merged, from configuration and headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import CheckpointError
from hubmerge.weights.adapter_config import parse_base_reference, read_adapter_config
from hubmerge.weights.adapter_config_fields import find_config_problems
from hubmerge.weights.adapter_match import match_adapter, open_adapter
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

from .adapters import LORA, save_adapter, write_base

f32 = np.float32
A, B, W = np.ones((1, 3), f32), np.ones((2, 1), f32), np.ones((2, 3), f32)
Q = {"q.lora_A.weight": A, "q.lora_B.weight": B}


def find_problems(tmp_path: Path, base: Any, tensors: Any, **config: Any) -> list[str]:
    adapter = save_adapter(tmp_path / "a", tensors, **config)
    return [
        problem
        for problem, _ in match_adapter(write_base(tmp_path / "b", base), adapter, "me").problems
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target_parameters", "experts.gate_up_proj", "which is not a list of names"),
        ("layer_replication", [[0, 4], [2, 5]], "repeats layers that the base has once"),
        ("alora_invocation_tokens", [5], r"switched on by certain tokens \(aLoRA\)"),
        ("arrow_config", {"top_k": 3}, r"routes each token to other adapters \(Arrow\)"),
        ("use_qalora", True, "quantised base"),
        ("megatron_config", {"hidden_size": 4}, "Megatron"),
        ("monteclora_config", {"num_samples": 8}, "at random"),
        ("kasa_config", {"beta": 1e-4}, "base with other weights"),
        ("velora_config", {"scale": 1.0}, "VeLoRA"),
        ("use_bdlora", {"nblocks": 2}, "as blocks"),
        ("init_lora_weights", "pissa_niter_16", "init_lora_weights is 'pissa_niter_16'"),
        ("init_lora_weights", "olora", "base whose weights were changed"),
        ("init_lora_weights", "corda", "base whose weights were changed"),
        ("init_lora_weights", "loftq", "base whose weights were changed"),
        ("init_lora_weights", "lora_ga", "base whose weights were changed"),
        ("init_lora_weights", "tomorrow", "base whose weights were changed"),
        ("warp_factor", 9, "sets 'warp_factor' to 9 .*, which this hubmerge does not know"),
        ("warp\x1b[31m", {"a": 1}, r"sets 'warp\\\\x1b\[31m' to \{'a': 1\} in"),
        ("peft_type", "PREFIX_TUNING", "is PREFIX_TUNING, which has no weights to merge"),
        ("peft_type", "ADALORA", "of the kind 'ADALORA', and only LORA and IA3 can be merged"),
        ("peft_type", None, "of the kind 'None'"),
        ("peft_type", ["LORA"], "of the kind"),
        ("r", 0, "has 0 for r in .*, which is not a whole number from 1"),
        ("r", -1, "which is not a whole number"),
        ("r", 2**40, "which is not a whole number from 1 to 1,048,576"),
        ("r", True, "has True for r"),
        ("r", "8", "has '8' for r"),
        ("r", None, "has None for r"),
        ("lora_alpha", "8", "which is not a finite number"),
        ("lora_alpha", 10**400, "which is not a finite number"),
        ("lora_alpha", [1], "which is not a finite number"),
        ("rank_pattern", [1], "which is not a map of names"),
        ("rank_pattern", {"q": 0}, "which is not a map of names"),
        ("alpha_pattern", {"q": "x"}, "which is not a map of names"),
        ("alpha_pattern", {"(a+)+$": 1}, "which is not a map of names, or of plain patterns"),
        ("alpha_pattern", {"(": 1}, "or of plain patterns"),
        ("trainable_token_indices", [1, 1], "which is not row numbers"),
        ("trainable_token_indices", {"wte": [-1]}, "which is not row numbers"),
        ("trainable_token_indices", 3, "which is not row numbers"),
        ("alpha_pattern", {"(?=x)q": 1}, "or of plain patterns"),
        ("alpha_pattern", {"a{1,99}": 1, "*": 1}, "or of plain patterns"),
        ("alpha_pattern", {".*.*.*.*q": 1}, "or of plain patterns"),
        ("alpha_pattern", {"q" * 501: 1}, "or of plain patterns"),
        ("alpha_pattern", {"|".join("abcdefghijklmnopqrst"): 1}, "or of plain patterns"),
        ("bias", "some", "which is not none, all or lora_only"),
        ("use_rslora", "yes", "which is not true or false"),
        ("use_dora", 1, "which is not true or false"),
    ],
)
def test_configuration_is_rejected_with_the_reason(
    field: str, value: Any, message: str, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "a", Q, **{**LORA, field: value})
    with pytest.raises(CheckpointError, match=rf"^Adapter .*/a .*{message}") as caught:
        open_adapter(write_base(tmp_path / "b", {"q.weight": W}), adapter)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
@pytest.mark.parametrize("field", ["arrow_config", "target_parameters", "warp_factor"])
def test_unset_fields_are_ignored(field: str, value: Any, tmp_path: Path) -> None:
    assert find_problems(tmp_path, {"q.weight": W}, Q, **{field: value}) == []


def test_all_problems_of_a_configuration_are_reported(tmp_path: Path) -> None:
    fields = {"r": 0, "use_bdlora": {"nblocks": 2}, "init_lora_weights": "pissa", "bias": "odd"}
    assert len(find_problems(tmp_path, {"q.weight": W}, Q, **fields)) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"[]", "is not an object"),
        (b'{"r": NaN}', "NaN is not JSON"),
        (b'{"r": 1, "r": 2}', "appears twice"),
        (b"[" * 100_000, "nested too deeply|cannot be read"),
        (b'{"a":' * 100_000, "nested too deeply|cannot be read"),
        (b" " * (5 << 20), "is too large to be the configuration"),
        (b'{"r": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'{"peft_type": "LORA", "lora_alpha": 1e999}', "has inf for lora_alpha"),
        (b"\xff\xfe", "cannot be read"),
        (None, "adapter_config.json cannot be read: No such file"),
    ],
)
def test_malformed_configuration_gives_one_sentence(
    data: bytes | None, message: str, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "a", Q)
    path = tmp_path / "a" / "adapter_config.json"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_adapter(write_base(tmp_path / "b", {"q.weight": W}), adapter)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_configuration_must_not_be_a_link(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", Q)
    (tmp_path / "secret.json").write_text("{}")
    path = tmp_path / "a" / "adapter_config.json"
    path.unlink()
    path.symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="symbolic link"):
        read_adapter_config(tmp_path / "a", "me")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from([
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias", "use_dora",
    "init_lora_weights", "feedforward_modules", "arrow_config", "else",
])  # fmt: skip


@given(st.dictionaries(FIELDS, JSON), st.sampled_from(["LORA", "IA3", None]))
def test_problems_of_any_configuration_are_printable_sentences(
    fields: dict[str, Any], kind: str | None
) -> None:
    for problem, hint in find_config_problems(
        {**fields, **({"peft_type": kind} if kind else {})}, "me"
    ):
        assert problem.startswith("me ")
        assert problem.isprintable()
        assert hint


@pytest.mark.parametrize(
    ("base", "tensors", "config", "message"),
    [
        ({"k.weight": W}, Q, {}, "me has 1 tensor (q.weight) that the base does not have."),
        ({"q.weight": W.T.copy()}, {**Q, "q.lora_A.weight": np.ones((1, 4), f32)}, {},
         "me does not fit the base in 1 tensor (q.weight)."),
        ({"q.weight": W}, Q, {"r": 2},
         "me has a rank in 1 tensor (q.weight) that differs from its configuration."),
        ({"q.weight": W}, {**Q, "q.lora_B.weight": np.ones((2, 2), f32)}, {},
         "me has a rank in 1 tensor (q.weight) that differs from its configuration."),
        ({"q.weight": W}, {"q.lora_A.weight": A}, {},
         "me lacks a part of its change to 1 tensor (q.weight)."),
        ({"q.weight": W}, Q, {"use_dora": True},
         "me lacks a part of its change to 1 tensor (q.weight)."),
        ({"q.weight": W}, {**Q, "q.lora_magnitude_vector": np.ones(2, f32)}, {},
         "me has parts for 1 tensor (q.weight) that its configuration does not mention."),
        ({"q.weight": W}, {**Q, "q.lora_magnitude_vector": np.ones(3, f32)}, {"use_dora": True},
         "me does not fit the base in 1 tensor (q.weight)."),
        ({"q.weight": W, "q.bias": W[:, 0].copy()}, {**Q, "q.lora_B.bias": np.ones(2, f32)}, {},
         "me has parts for 1 tensor (q.weight) that its configuration does not mention."),
        ({"q.weight": W}, {**Q, "q.lora_B.bias": np.ones(2, f32)}, {"lora_bias": True},
         "me has 1 tensor (q.bias) that the base does not have."),
        ({"q.weight": W}, {"q.ia3_l": np.ones((2, 1), f32)}, {},
         "me has parts for 1 tensor (q.weight) that its configuration does not mention."),
        ({"q.weight": W}, Q, {"peft_type": "IA3"},
         "me has parts for 1 tensor (q.weight) that its configuration does not mention."),
        ({"q.weight": W}, {"q.ia3_l": np.ones((4, 1), f32)}, {"peft_type": "IA3"},
         "me does not fit the base in 1 tensor (q.weight)."),
        ({"q.weight": W}, {"q.ia3_l": np.ones((1, 2, 1, 1), f32)}, {"peft_type": "IA3"},
         "me changes 1 tensor (q.weight), which is neither a matrix nor a convolution with a plain "
         "LoRA."),
        ({"q.weight": np.ones((2, 3, 1, 1), f32)}, Q, {},
         "me does not fit the base in 1 tensor (q.weight)."),
        ({"q.weight": W.astype(np.int8)}, Q, {},
         "me changes 1 tensor (q.weight), where a tensor is not floating-point."),
        ({"q.weight": W}, {**Q, "q.lora_A.weight": A.astype(np.int8)}, {},
         "me changes 1 tensor (q.weight), where a tensor is not floating-point."),
        ({"q.weight": W}, {**Q, "head.weight": W}, {},
         "me has 1 tensor (head.weight) that the base does not have."),
        ({"q.weight": W, "head.weight": W.T.copy()}, {**Q, "head.weight": W}, {},
         "me does not fit the base in 1 tensor (head.weight)."),
        ({"q.weight": W, "ids": np.ones(2, f32)}, {**Q, "ids": np.array([1, 2])}, {},
         "me does not fit the base in 1 tensor (ids)."),
        ({"q.weight": W}, {**Q, **{f"q.base_layer.{k[2:]}": v for k, v in Q.items()}}, {},
         "me changes 1 tensor (q.weight) twice."),
        ({"q.weight": W}, {**Q, "q.lora_diag": A[0]}, {},
         "me has 1 tensor (q.lora_diag) that the base does not have."),
    ],
)  # fmt: skip
def test_tensors_are_rejected_with_the_reason(
    base: Any,
    tensors: Any,
    config: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    fields = config if "peft_type" in config else {**LORA, **config}
    assert find_problems(tmp_path, base, tensors, **fields) == [message]


def test_names_that_are_not_peft_names(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", Q)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"base_model.model.q", b"base_model.modle.q"))
    base = write_base(tmp_path / "b", {"q.weight": W})
    with pytest.raises(CheckpointError, match=r"has 2 tensors .* whose names are not peft's"):
        open_adapter(base, open_checkpoint(tmp_path / "a"))


@pytest.mark.parametrize(("add", "drop"), [("", ""), ("bert.", ""), ("", "model."), ("", "h.0.")])
def test_one_prefix_may_differ(add: str, drop: str, tmp_path: Path) -> None:
    tensors = {f"{drop}{name}": values for name, values in Q.items()}
    base = write_base(tmp_path / "b", {f"{add}q.weight": W, "k.weight": W})
    adapter = save_adapter(tmp_path / "a", tensors)
    if drop == "h.0.":  # two parts are no prefix
        with pytest.raises(CheckpointError, match=r"h\.0\.q\.weight"):
            open_adapter(base, adapter)
    else:
        assert set(open_adapter(base, adapter).changes) == {f"{add}q.weight"}


def test_prefix_must_fit_all_names_and_be_unique(tmp_path: Path) -> None:
    towers = {"text.q.weight": W, "vision.q.weight": W}
    problems = find_problems(tmp_path / "1", towers, Q)
    assert problems == ["me fits several parts of the base: 'text.' or 'vision.'."]
    tensors = {**Q, **{name.replace("q.", "k."): values for name, values in Q.items()}}
    problems = find_problems(tmp_path / "2", {"text.q.weight": W, "text.v.weight": W}, tensors)
    assert problems == ["me has 1 tensor (k.weight) that the base does not have."]
    assert find_problems(tmp_path / "3", {"q.weight": W, "text.q.weight": W}, Q) == []


def test_many_misfits_give_one_sentence(tmp_path: Path) -> None:
    base = {f"h.{i}.q.weight": W.T[:2].copy() for i in range(9)}
    tensors = {f"h.{i}.{name}": values for i in range(9) for name, values in Q.items()}
    (problem,) = find_problems(tmp_path, base, tensors)
    assert problem.startswith("me does not fit the base in 9 tensors (h.0.q.weight, h.1.q.weight, ")


def test_base_reference_of_a_configuration() -> None:
    fields = {"base_model_name_or_path": "owner/base", "revision": None}
    assert parse_base_reference(json.dumps(fields).encode(), "x") == ("owner/base", None)
    assert parse_base_reference(b'{"base_model_name_or_path": ""}', "x") == (None, None)
    assert parse_base_reference(b'{"revision": "step4"}', "x") == (None, "step4")
    with pytest.raises(CheckpointError, match="x: its base_model_name_or_path is not a string"):
        parse_base_reference(b'{"base_model_name_or_path": 5}', "x")
