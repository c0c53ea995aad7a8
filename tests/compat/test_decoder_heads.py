"""Models with a decoder that classify: bodies are merged, heads give what transformers gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hubmerge.hub.client import Hub
from hubmerge.models.text_decoder import PaddedClassifier
from hubmerge.server import lease
from tests.command_line import run_command as run

pytestmark = pytest.mark.usefixtures("running_hub")

WORDS = ["<pad>", "<eos>", *(f"w{number}" for number in range(62))]
CLASSES = {"mood": ["glad", "sad"], "news": ["arts", "law", "sport"]}
TEXTS = [" ".join(f"w{n * k % 61}" for k in range(1, 2 + n % 9)) for n in range(1, 61)]
LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 64,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 1, "forced_eos_token_id": 1,
    "decoder_start_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "gpt2": (
        transformers.GPT2LMHeadModel, transformers.GPT2ForSequenceClassification,
        lambda **fields: transformers.GPT2Config(**GPT2, **fields),
    ),
    "llama": (
        transformers.LlamaForCausalLM, transformers.LlamaForSequenceClassification,
        lambda **fields: transformers.LlamaConfig(**LLAMA, **fields),
    ),
    "t5": (
        transformers.T5ForConditionalGeneration, transformers.T5ForSequenceClassification,
        lambda **fields: transformers.T5Config(**T5, **fields),
    ),
    "bart": (
        transformers.BartForConditionalGeneration, transformers.BartForSequenceClassification,
        lambda **fields: transformers.BartConfig(**BART, **fields),
    ),
}  # fmt: skip
DECODERS = ("gpt2", "llama")
# The token that the experts pad with: one of its own, none, and one that texts end with.
PADDING = {"own": 0, "none": None, "word": WORDS.index("w4")}


def tokenizer(pad: int | None = 0) -> Any:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<eos>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    # The heads of encoder-decoders read the end of a text; of GPT-2 and Llama it is one more word.
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", WORDS.index("<eos>"))]
    )
    special = {"eos_token": "<eos>", "unk_token": "<eos>"}
    if pad is not None:
        special["pad_token"] = WORDS[pad]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def labels(names: list[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def add_noise(model: PreTrainedModel, size: float = 0.3) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (1 if parameter.ndim > 1 else 0.1) * size * torch.randn_like(parameter)
    return model.eval()


def save_models(family: str, pad: int | None, folder: Path) -> dict[str, PreTrainedModel]:
    """A base and a classifier made from it for each of CLASSES, with their tokenizers."""
    base_class, expert_class, config = FAMILIES[family]
    torch.manual_seed(3)
    base = add_noise(base_class(config(pad_token_id=pad)))
    models = {"base": base}
    for name, classes in CLASSES.items():
        models[name] = expert_class(config(pad_token_id=pad, **labels(classes)))
        body = base.base_model.state_dict()
        models[name].base_model.load_state_dict(
            {tensor: body[tensor] for tensor in models[name].base_model.state_dict()}
        )
        add_noise(models[name])
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer(pad).save_pretrained(folder / name)
    return models


def tokens_of(pad: int | None, texts: list[str], side: str = "right") -> dict[str, Tensor]:
    encoded = tokenizer(pad)(texts, padding=pad is not None, padding_side=side, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def logits_of(model: PreTrainedModel, pad: int | None) -> Tensor:
    """The logits of TEXTS by transformers: in one batch, or row by row without a padding token."""
    batches = [TEXTS] if pad is not None else [[text] for text in TEXTS]
    with torch.no_grad():
        return torch.cat([model(**tokens_of(pad, batch)).logits for batch in batches])


def write_task(folder: Path, name: str, logits: Tensor) -> Path:
    """A task whose labels are the answers in these logits, so that its accuracy is 1."""
    answers = [CLASSES[name][number] for number in logits.argmax(1).tolist()]
    assert len(set(answers)) > 1
    rows = [f"{text},{answer}" for text, answer in zip(TEXTS, answers, strict=True)]
    (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    task = {
        "name": name, "kind": "text", "head": "trained", "classes": CLASSES[name][::-1],
        "data": {"path": f"{name}.csv"},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder / f"{name}.yaml"


def accuracy(model: Path, task: Path, split: str = "train", hub: str = "local") -> float:
    done = run("eval", model, "--tasks", task, "--split", split, "--json", hub=hub)
    assert done.exit_code == 0, done.stderr
    (score,) = json.loads(done.stdout)
    assert score["count"] > 5
    return float(score["value"])


def merge(folder: Path, names: list[str], *options: str) -> Path:
    experts = [folder / name for name in names]
    done = run("merge", *experts, "--base", folder / "base", "--method", "average", "--heads",
               "keep", "--out", folder / "out", *options)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return folder / "out"


def mean_body(models: dict[str, PreTrainedModel]) -> dict[str, Tensor]:
    first, second = (models[name].base_model.state_dict() for name in CLASSES)
    return {name: (first[name] + second[name]) / 2 for name in first}


@pytest.mark.parametrize(
    ("family", "padding"),
    [
        ("gpt2", "none"), ("llama", "own"), ("t5", "own"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (
            ("gpt2", "own"), ("gpt2", "word"), ("llama", "none"), ("bart", "own"),
        )),
    ],
)  # fmt: skip
def test_a_merge_is_evaluated_with_each_head(family: str, padding: str, tmp_path: Path) -> None:
    pad = PADDING[padding]
    models = save_models(family, pad, tmp_path)
    out = merge(tmp_path, list(CLASSES))
    task = write_task(tmp_path, "mood", logits_of(models["mood"], pad))
    assert accuracy(tmp_path / "mood", task) == 1  # the expert itself
    body = mean_body(models)
    for name in CLASSES:
        models[name].base_model.load_state_dict(body)
        assert accuracy(out, write_task(tmp_path, name, logits_of(models[name], pad))) == 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", ["own", "word"])
@pytest.mark.parametrize("family", DECODERS)
def test_padded_rows_have_the_logits_of_transformers(
    family: str, padding: str, side: str, tmp_path: Path
) -> None:
    """Whatever fills the masked places."""
    pad = PADDING[padding]
    model = save_models(family, pad, tmp_path)["news"]
    tokens = tokens_of(pad, TEXTS, side)
    assert not tokens["attention_mask"].all()
    filled = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, 7)
    with torch.no_grad():
        expected = model(**tokens).logits
        actual = PaddedClassifier(model)(filled, tokens["attention_mask"]).logits
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("family", "pad"), [
    ("gpt2", None), ("llama", -1),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (("gpt2", -1), ("llama", None))),
])  # fmt: skip
def test_rows_are_not_padded_without_a_token_for_it(
    family: str, pad: int | None, tmp_path: Path
) -> None:
    """transformers refuses a batch of them; -1 was written by LLaMA's first conversions."""
    model = save_models(family, None, tmp_path)["news"]
    expected = logits_of(model, None)
    model.config.pad_token_id = pad
    for side in ("left", "right"):
        tokens = tokens_of(0, TEXTS, side)
        with torch.no_grad():
            actual = PaddedClassifier(model)(**tokens).logits
        torch.testing.assert_close(actual, expected)


def add_padding_tokens(models: dict[str, PreTrainedModel], folder: Path) -> None:
    for name, added in (("mood", ["<a>", "[PAD]"]), ("news", ["[PAD]"])):
        own = tokenizer(None)
        own.add_tokens(added, special_tokens=True)
        own.pad_token = "[PAD]"
        models[name].resize_token_embeddings(len(own), mean_resizing=False)
        models[name].config.pad_token_id = own.pad_token_id
        models[name].save_pretrained(folder / name)
        own.save_pretrained(folder / name)


@pytest.mark.parametrize("mode", [pytest.param("base", marks=pytest.mark.slow), "union"])
def test_experts_that_added_a_padding_token(mode: str, tmp_path: Path) -> None:
    """Each at another row: in the merge it has one row, or none."""
    models = save_models("llama", None, tmp_path)
    add_padding_tokens(models, tmp_path)
    assert [models[name].config.pad_token_id for name in CLASSES] == [65, 64]
    out = merge(tmp_path, list(CLASSES), "--vocabulary", mode)
    rows = len(load_file(out / "model.safetensors")["model.embed_tokens.weight"])
    assert rows == (66 if mode == "union" else 64)
    for name in CLASSES:
        models[name].resize_token_embeddings(64)
        models[name].config.pad_token_id = None
    body = mean_body(models)
    for name in CLASSES:
        models[name].base_model.load_state_dict(body)
        assert accuracy(out, write_task(tmp_path, name, logits_of(models[name], None))) == 1
        with safe_open(out / f"head-{name}.safetensors", framework="pt") as head:
            config = json.loads(head.metadata()["config"])
        padding = transformers.AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("[PAD]")
        assert config["vocab_size"] == rows
        assert config["pad_token_id"] == (padding if mode == "union" else None)


def test_an_adapter_and_its_merge_are_evaluated_with_its_head(tmp_path: Path) -> None:
    base_model = save_models("gpt2", None, tmp_path)["base"]
    model = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**GPT2, **labels(CLASSES["news"]))
    )
    model.base_model.load_state_dict(base_model.base_model.state_dict())
    shutil.rmtree(tmp_path / "news")
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="SEQ_CLS", lora_alpha=16,
                           init_lora_weights=False, fan_in_fan_out=True)  # fmt: skip
    adapted = peft.get_peft_model(model, lora).eval()
    adapted.save_pretrained(tmp_path / "news")
    path = tmp_path / "news" / "adapter_config.json"
    named = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    path.write_text(json.dumps(named))
    # An adapter does not name its classes: they are in the order of the task.
    task = write_task(tmp_path, "news", logits_of(adapted, None))
    fields = json.loads(task.read_text())
    task.write_text(json.dumps(fields | {"classes": CLASSES["news"]}))
    assert accuracy(tmp_path / "news", task) == 1
    assert accuracy(merge(tmp_path, ["news"]), task) == 1


@pytest.mark.slow
def test_a_selection_measures_decoders_with_their_own_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the base's tokens, without those that the experts added."""
    models = save_models("llama", None, tmp_path)
    tasks = [write_task(tmp_path, name, logits_of(models[name], None)) for name in CLASSES]
    add_padding_tokens(models, tmp_path)
    with lease(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        api = Hub(server.url, lambda: server.token, tmp_path / "cache", "the test Hub").api
        for name in ("base", *CLASSES):
            api.create_repo(f"me/{name}")
        api.upload_folder(repo_id="me/base", folder_path=tmp_path / "base")
        for name in CLASSES:
            file = tmp_path / name / "model.safetensors"
            for step, factor in ((1, -1.0), (2, 1.0)):
                tensors = load_file(file)
                tensors["score.weight"] *= factor
                save_file(tensors, file, {"format": "pt"})
                api.upload_folder(repo_id=f"me/{name}", folder_path=tmp_path / name)
                api.create_tag(f"me/{name}", tag=f"step{step}")
        words = ["select", "me/mood", "me/news", "--base", "me/base", "--target", "average",
                 "--tasks", ",".join(map(str, tasks)), "--lock", tmp_path / "lock"]  # fmt: skip
        chosen = run(*words, "--heads", "keep", "--vocabulary", "base", "--exhaustive", hub="")
        assert chosen.exit_code in (0, 4), chosen.stderr
        lock = json.loads((tmp_path / "lock").read_text())
        (pick,) = [pick for pick in lock["picks"] if pick["policy"] == "last"]
        done = run("merge", "--lock", tmp_path / "lock", "--policy", "last", "--out",
                   tmp_path / "out", hub="")  # fmt: skip
        assert done.exit_code == 0, done.stderr
        for name, task in zip(CLASSES, tasks, strict=True):
            (measured,) = [v for key, v in pick["tasks"].items() if key.startswith(f"{name}@")]
            value = accuracy(tmp_path / "out", task, split="validation", hub="")
            assert value == pytest.approx(measured, abs=1e-9)


def test_a_decoder_without_a_head_is_refused(tmp_path: Path) -> None:
    models = save_models("gpt2", 0, tmp_path)
    task = write_task(tmp_path, "news", logits_of(models["news"], 0))
    refused = run("eval", tmp_path / "base", "--tasks", task, "--split", "train")
    assert "has no trained head for task news" in refused.stderr
    fields = json.loads(task.read_text())
    task.write_text(json.dumps({key: v for key, v in fields.items() if key != "head"}))
    refused = run("eval", tmp_path / "news", "--tasks", task, "--split", "train")
    assert "does not support tasks of kind text" in refused.stderr
