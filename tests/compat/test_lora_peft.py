"""Our adapter deltas compared with peft's merge_and_unload, for every kind of change and model."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from open_clip import CLIP
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan, check_plan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.task_vector import TaskVector

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

MINI = Path(hubmerge.__file__).parent / "mini" / "base"
Make = Callable[[], nn.Module]
State = dict[str, "torch.Tensor"]
TOWER = {
    "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


def clip() -> nn.Module:
    tower = {**TOWER, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text = {**tower, "vocab_size": 20, "max_position_embeddings": 8}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    )


def bert(kind: str = "BertForSequenceClassification") -> nn.Module:
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=16, **TOWER)
    return getattr(transformers, kind)(config)


def t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=24, num_layers=1, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def gpt2(**options: Any) -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8,
            bos_token_id=0, eos_token_id=1, **options,
        )
    )  # fmt: skip


def llama(**options: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, **TOWER, bos_token_id=0, eos_token_id=1, **options)
    )


class Attention(nn.Module):
    """The attention that open_clip's towers use."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.proj = nn.Linear(8, 6)


class Convolutions(nn.Module):
    """Convolutions of one, two and three dimensions, of one point, and in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 6, 3)
        self.flat = nn.Conv2d(4, 6, (3, 2), stride=2)
        self.point = nn.Conv2d(4, 6, 1)
        self.solid = nn.Conv3d(4, 6, 2)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)


def open_clip() -> nn.Module:
    """The tiny CLIP that comes with the package."""
    model = CLIP(**json.loads((MINI / "open_clip_config.json").read_text())["model_cfg"])
    model.load_state_dict(load_file(MINI / "open_clip_model.safetensors"))
    return model


def randomize(model: nn.Module, seed: int, *parts: str) -> None:
    """Add noise to parameters whose name contains one of these parts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in parts):
                weight += 0.3 * torch.randn(weight.shape, generator=generator)


def save_base(folder: Path, model: nn.Module) -> Checkpoint:
    """Write a model's weights; tied tensors are written once, as by save_pretrained."""
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        seen.setdefault(tensor.data_ptr(), name)
    folder.mkdir(parents=True)
    state = {name: model.state_dict()[name].clone().contiguous() for name in seen.values()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(folder)


def make_random(make: Make) -> nn.Module:
    """A model with fixed random values, none of them zero."""
    torch.manual_seed(0)
    model = make()
    randomize(model, 0, "")
    return model


def train_adapter(
    folder: Path,
    make: Make,
    config: Any,
    seed: int = 1,
    extra_parts: Sequence[str] = (),
) -> tuple[Checkpoint, State]:
    """Train and save an adapter; return it and the weights that peft merges from it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make_random(make), copy.deepcopy(config))
        randomize(model, seed, "lora_", "ia3_", "modules_to_save", *extra_parts)
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(make_random(make), folder)
        return open_checkpoint(folder), loaded.merge_and_unload().state_dict()


def save_random_base(folder: Path, make: Make) -> Checkpoint:
    return save_base(folder, make_random(make))


def compare(base: Checkpoint, adapter: Checkpoint, merged: State) -> set[str]:
    """Compare base + delta with peft's weights; return the names of changed tensors."""
    vector, changed = TaskVector(base, adapter), set()
    for name in vector.names():
        delta, base_values = vector.delta(name), base.read(name)
        assert delta.flags.c_contiguous
        assert delta.dtype == (np.float64 if base_values.dtype == np.float64 else np.float32)
        expected = merged[name].numpy()
        np.testing.assert_allclose(
            base_values + delta, expected, rtol=1e-6, atol=1e-6 * abs(expected).max()
        )
        if delta.any():
            changed.add(name)
        else:
            assert np.array_equal(base_values, expected), name
    return changed


CASES: dict[str, tuple[Make, Any, tuple[str, ...], int]] = {
    # name: model, config, other trained parts, how many tensors of the base it changes
    "linear": (clip, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "fc1"]), (), 8),
    "negative alpha": (clip, LoraConfig(r=3, lora_alpha=-1, target_modules=["v_proj"]), (), 4),
    "rslora": (
        bert, LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["query"]), (), 2,
    ),
    "ranks and alphas by pattern": (
        bert,
        LoraConfig(
            r=2, lora_alpha=4, target_modules=["query", "key", "value", "dense"],
            rank_pattern={"query": 3, r".*layer\.1.*\.(key|value)": 1, "^bert.pooler.dense": 5},
            alpha_pattern={"encoder.layer.0.attention.self.key": 7.5, r"output\.dense": 1},
        ),
        (), 13,
    ),
    "lora_bias": (bert, LoraConfig(r=2, lora_bias=True, target_modules=["query"]), (), 4),
    "bias all": (bert, LoraConfig(r=2, bias="all", target_modules=["query"]), (".bias",), 21),
    "bias lora_only": (
        bert, LoraConfig(r=2, bias="lora_only", target_modules=["query"]), ("base_layer.bias",), 4,
    ),
    "bias all and a saved head": (
        bert,
        LoraConfig(r=2, bias="all", task_type="SEQ_CLS", target_modules=["query"]),
        ("LayerNorm.bias", "base_layer.bias"), 11,
    ),
    "modules_to_save": (
        bert, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier", "pooler"]),
        (), 6,
    ),
    "embedding": (
        bert, LoraConfig(r=2, target_modules=["word_embeddings", "query"]), (), 3,
    ),
    "embedding saved next to its change": (
        llama, LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
        ("embed_tokens.base_layer",), 3,
    ),
    "convolutions": (
        Convolutions,
        LoraConfig(r=2, lora_alpha=3, target_modules=["line", "flat", "point", "solid"]), (), 4,
    ),
    "convolution with a bias": (
        Convolutions, LoraConfig(r=2, lora_bias=True, target_modules=["flat"]), (), 2,
    ),
    "patch embedding": (clip, LoraConfig(r=2, target_modules=["patch_embedding"]), (), 1),
    "a bare parameter": (
        Attention,
        LoraConfig(r=2, target_modules=[], target_parameters=["attn.in_proj_weight"]), (), 1,
    ),
    "head": (llama, LoraConfig(r=2, target_modules=["lm_head", "down_proj"]), (), 3),
    "rows of an embedding": (
        llama, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 2]),
        ("trainable_tokens",), 3,
    ),
    "rows of an embedding by its name": (
        llama,
        LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [7]}),
        ("trainable_tokens",), 3,
    ),
    "rows of a tied embedding": (
        lambda: llama(tie_word_embeddings=True),
        LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 2]),
        ("trainable_tokens",), 3,
    ),
    "tied embedding of T5": (t5, LoraConfig(r=2, target_modules=["shared", "q", "wi"]), (), 6),
    "saved embedding of T5": (
        t5, LoraConfig(r=2, target_modules=["v"], modules_to_save=["shared"]), (), 4,
    ),
    "Conv1D": (gpt2, LoraConfig(r=2, target_modules=["c_attn", "c_proj", "c_fc"]), (), 8),
    "Conv1D and Linear, whose flag wins": (
        lambda: gpt2(tie_word_embeddings=False),
        LoraConfig(r=2, target_modules=["c_attn", "c_proj", "lm_head"]), (), 7,
    ),
    "dora": (llama, LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "up_proj"]), (), 4),
    "dora of Conv1D and embedding": (
        gpt2, LoraConfig(r=2, use_dora=True, target_modules=["c_proj", "c_fc", "wte"]), (), 7,
    ),
    "dora, rslora and patterns": (
        bert,
        LoraConfig(
            r=2, use_dora=True, use_rslora=True, target_modules=["query", "dense"],
            rank_pattern={"dense": 4}, modules_to_save=["classifier"],
        ),
        (), 11,
    ),
    "fused attention": (
        Attention,
        LoraConfig(
            r=2, lora_alpha=3, target_modules=["attn", "proj"], bias="all",
            rank_pattern={"attn": 3}, alpha_pattern={"attn": 5, "out_proj": 100},
        ),
        (".bias",), 5,
    ),
    "open_clip": (
        open_clip,
        LoraConfig(r=2, target_modules=["attn", "c_fc", "token_embedding"]), (), 19,
    ),
    "out_proj alone": (Attention, LoraConfig(r=2, target_modules=["out_proj"]), (), 1),
    "ia3": (
        bert,
        IA3Config(
            target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"],
            modules_to_save=["classifier"],
        ),
        (), 14,
    ),
    "ia3 of Conv1D": (
        gpt2,
        IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
        (), 6,
    ),
    "ia3 of T5": (
        t5, IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=r".*\.wo$"), (), 8,
    ),
    "initialised without zeros": (
        llama, LoraConfig(r=2, init_lora_weights="orthogonal", target_modules=["o_proj"]), (), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_base_plus_delta_equals_peft_merge(case: str, tmp_path: Path) -> None:
    make, config, also, count = CASES[case]
    adapter, merged = train_adapter(tmp_path / "adapter", make, config, extra_parts=also)
    assert len(compare(save_random_base(tmp_path / "base", make), adapter, merged)) == count


def test_half_precision_adapter_of_a_double_base(tmp_path: Path) -> None:
    """Factors are converted to float32 before they are multiplied, so no product is rounded."""
    adapter, merged = train_adapter(
        tmp_path / "adapter",
        lambda: bert().double(),
        LoraConfig(r=2, target_modules=["query"]),
    )
    base = save_random_base(tmp_path / "base", lambda: bert().double())
    assert len(compare(base, adapter, merged)) == 2
    halves = {name: tensor.bfloat16() for name, tensor in load_file(weights_file(adapter)).items()}
    save_file(halves, weights_file(adapter))
    coarse = TaskVector(base, open_checkpoint(adapter.folder))
    for name, ours in merged.items():
        if name.endswith("query.weight"):
            delta = ours.numpy() - base.read(name)
            np.testing.assert_allclose(coarse.delta(name), delta, rtol=0.02, atol=0.01)


def test_tied_head_stored_twice_follows_the_embedding(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["wte", "c_fc"])
    adapter, merged = train_adapter(tmp_path / "adapter", gpt2, config)
    state = {name: tensor.clone() for name, tensor in make_random(gpt2).state_dict().items()}
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    changed = compare(open_checkpoint(tmp_path / "base"), adapter, merged)
    assert {"transformer.wte.weight", "lm_head.weight"} < changed
    assert not {"transformer.wpe.weight", "transformer.ln_f.weight"} & changed


@pytest.mark.parametrize(
    ("trained", "kept"), [("BertForMaskedLM", "BertModel"), ("BertModel", "BertForMaskedLM")]
)
def test_adapter_of_an_outer_or_inner_class(trained: str, kept: str, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["query"])
    adapter, merged = train_adapter(tmp_path / "adapter", lambda: bert(trained), config)
    state = make_random(lambda: bert(trained)).state_dict()
    prefix = {"BertModel": lambda name: name.removeprefix("bert.")}.get(kept, "bert.{}".format)
    (tmp_path / "base").mkdir()
    body = {prefix(n): t.clone() for n, t in state.items() if "cls." not in n}
    save_file(body, tmp_path / "base" / "model.safetensors")
    renamed = {prefix(name): tensor for name, tensor in merged.items()}
    assert len(compare(open_checkpoint(tmp_path / "base"), adapter, renamed)) == 2


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_adapter_of_a_vit_with_other_names_in_files(kind: str, tmp_path: Path) -> None:
    """Saved by transformers, which renames the layers."""

    def vit() -> nn.Module:
        config = transformers.ViTConfig(image_size=8, patch_size=4, **TOWER)
        return getattr(transformers, kind)(config)

    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj", "fc1", "fc2"])
    adapter, _ = train_adapter(tmp_path / "adapter", vit, config)
    make_random(vit).save_pretrained(tmp_path / "base")
    merged = PeftModel.from_pretrained(make_random(vit), tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    state = load_file(tmp_path / "merged" / "model.safetensors")
    assert any("encoder.layer.0.attention.attention.query" in name for name in state)
    assert len(compare(open_checkpoint(tmp_path / "base"), adapter, state)) == 8


def test_adapter_in_shards(tmp_path: Path) -> None:
    adapter, merged = train_adapter(tmp_path / "a", bert, LoraConfig(r=2, target_modules=["query"]))
    tensors = load_file(weights_file(adapter))
    weights_file(adapter).unlink()
    shards = {name: f"adapter_model-{i}.safetensors" for i, name in enumerate(tensors)}
    for name, shard in shards.items():
        save_file({name: tensors[name]}, tmp_path / "a" / shard)
    index = tmp_path / "a" / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    base = save_random_base(tmp_path / "base", bert)
    assert len(compare(base, open_checkpoint(tmp_path / "a"), merged)) == 2


def weights_file(adapter: Checkpoint) -> Path:
    return adapter.folder / adapter.weight_file_names()[0]


# Three adapters of one base, with different ranks, modules and methods.
THREE = [
    LoraConfig(r=2, lora_alpha=8, target_modules=["query", "dense"]),
    LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"]),
    LoraConfig(r=2, use_dora=True, target_modules=["key", "query"]),
]


def make_plan(
    base: Checkpoint, experts: Sequence[Checkpoint], name: str, **params: Any
) -> MergePlan:
    merge_experts = tuple(
        Expert(checkpoint, f"{i:040d}", label=f"e{i}") for i, checkpoint in enumerate(experts)
    )
    return MergePlan(base, merge_experts, method(name), parse_params(method(name), params))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, list, list]:
    """A base, three adapters of it, and the models that peft merges from them."""
    folder = tmp_path_factory.mktemp("family")
    base, adapters, full_models = save_random_base(folder / "base", bert), [], []
    for i, config in enumerate(THREE):
        adapter, merged = train_adapter(folder / f"adapter{i}", bert, config, seed=i + 1)
        adapters.append(adapter)
        (folder / f"full{i}").mkdir()
        save_file(merged, folder / f"full{i}" / "model.safetensors")
        full_models.append(open_checkpoint(folder / f"full{i}"))
    return base, adapters, full_models


METHODS = [
    ("average", {}),
    ("task_arithmetic", {"scale": 0.4}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "trim": "tensor"}),
    ("ties", {"density": 0.5, "scope": "all"}),
    ("dare", {"density": 0.5}),
]


@pytest.mark.parametrize(("name", "params"), METHODS, ids=str)
@pytest.mark.parametrize("adapted", [
    (0, 2), *(pytest.param(each, marks=pytest.mark.slow) for each in ((0, 1, 2), (1,))),
], ids=str)  # fmt: skip
def test_adapters_merge_like_the_models_that_peft_merges_from_them(
    name: str, params: dict[str, Any], adapted: tuple[int, ...], family: Any, tmp_path: Path
) -> None:
    base, adapters, full_models = family
    mixed = [
        adapters[i] if i in adapted else full_model for i, full_model in enumerate(full_models)
    ]
    ours = merge(make_plan(base, mixed, name, **params), tmp_path / "ours")
    theirs = merge(make_plan(base, full_models, name, **params), tmp_path / "theirs")
    for tensor in base.names():
        np.testing.assert_allclose(ours.read(tensor), theirs.read(tensor), rtol=1e-5, atol=1e-6)


def test_unchanged_tensors_are_the_base_bit_for_bit(family: Any, tmp_path: Path) -> None:
    base, adapters, _ = family
    result = merge(make_plan(base, adapters, "average"), tmp_path / "out")
    moved = ("query", "key", "value", "dense", "classifier")
    still = [
        name for name in base.names() if not name.endswith(tuple(f"{m}.weight" for m in moved))
    ]
    still.remove("classifier.bias")
    assert len(still) > 20
    assert all(result.read(name).tobytes() == base.read(name).tobytes() for name in still)
    assert sorted(path.name for path in result.folder.iterdir()) == ["model.safetensors"]


def test_ties_ranks_only_changed_tensors(family: Any, tmp_path: Path) -> None:
    """Same result as for a model of only the changed tensors; not so with scope=all."""
    base, adapters, full_models = family
    names = [n for n in base.names() if any(TaskVector(base, a).delta(n).any() for a in adapters)]
    assert len(names) < len(base.names())

    def only(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
        folder.mkdir()
        tensors = {name: torch.from_numpy(checkpoint.read(name)) for name in names}
        save_file(tensors, folder / "model.safetensors")
        return open_checkpoint(folder)

    small = only(base, tmp_path / "base")
    experts = [only(full_model, tmp_path / f"{i}") for i, full_model in enumerate(full_models)]
    alone = merge(make_plan(small, experts, "ties", density=0.1, scope="all"), tmp_path / "alone")
    changed = merge(make_plan(base, adapters, "ties", density=0.1), tmp_path / "changed")
    everything = merge(
        make_plan(base, adapters, "ties", density=0.1, scope="all"), tmp_path / "all"
    )
    kept = {
        where.folder.name: sum(
            np.count_nonzero(where.read(name) != base.read(name)) for name in names
        )
        for where in (alone, changed, everything)
    }
    assert kept["changed"] == kept["alone"] < kept["all"]
    for name in names:
        np.testing.assert_allclose(changed.read(name), alone.read(name), rtol=1e-5, atol=1e-6)


REJECTED: dict[str, tuple[Make, Any, str, str]] = {
    "grouped convolution": (
        Convolutions, LoraConfig(r=2, target_modules=["grouped"]),
        "changes the grouped convolution", "without this layer",
    ),
    "dora of a convolution": (
        Convolutions, LoraConfig(r=2, use_dora=True, target_modules=["flat"]),
        "neither a matrix nor a convolution", "merge_and_unload",
    ),
    "pissa": (
        bert, LoraConfig(r=2, init_lora_weights="pissa", target_modules=["query"]),
        "init_lora_weights is 'pissa'", "path_initial_model_for_weight_conversion",
    ),
    "olora": (
        bert, LoraConfig(r=2, init_lora_weights="olora", target_modules=["query"]),
        "init_lora_weights is 'olora'", "path_initial_model_for_weight_conversion",
    ),
    "layers twice": (
        llama, LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)]),
        "repeats layers", "merge_and_unload",
    ),
    "tied head": (
        t5, LoraConfig(r=2, target_modules=["lm_head"]),
        r"has 1 tensor \(lm_head.weight\) that the base does not have", "base that it was trained",
    ),
    "a head of its own": (
        bert, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]),
        r"has 2 tensors \(classifier.bias, classifier.weight\) that the base does not", "--heads",
    ),
    "LoHa": (
        bert, LoHaConfig(r=2, target_modules=["query"]), "of the kind 'LOHA'", "merge_and_unload",
    ),
    "prompts": (
        gpt2, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        "is PROMPT_TUNING, which has no weights to merge", "Leave it out",
    ),
    "bias that the base lacks": (
        llama, LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"]),
        r"has 2 tensors \(model.layers.0.self_attn.q_proj.bias, .*base does not", "--base",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_adapter_that_cannot_be_merged_exactly_is_rejected(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, config, message, hint = REJECTED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(make_random(make), config).save_pretrained(tmp_path / "adapter")
    base = save_random_base(tmp_path / "base", make)
    if case == "a head of its own":
        base = save_random_base(tmp_path / "headless", lambda: bert("BertModel"))
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    with pytest.raises(CheckpointError, match=message) as caught:
        check_plan(make_plan(base, [open_checkpoint(tmp_path / "adapter")], "average"))
    assert caught.value.message.startswith("Adapter e0 ")
    assert hint in caught.value.hint


def test_out_proj_of_a_newer_peft_is_rejected(tmp_path: Path) -> None:
    adapter, _ = train_adapter(tmp_path / "a", Attention, LoraConfig(r=2, target_modules=["attn"]))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(
        json.dumps({**config, "peft_version": "0.22.0.dev0@UNKNOWN"})
    )
    with pytest.raises(CheckpointError, match=r"attn.out_proj.weight\) with a peft newer than"):
        check_plan(make_plan(save_random_base(tmp_path / "base", Attention), [adapter], "average"))
