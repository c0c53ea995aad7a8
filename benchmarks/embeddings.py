"""The speed of embedding models beside sentence-transformers as ratios, measured in one run.

open     seconds of SentenceTransformer(folder) over those of `load_model`, in CPU time
train    steps per second of `hubmerge train` over those of SentenceTransformerTrainer with
         MultipleNegativesRankingLoss: the same model, rows, AdamW, clipping, fp32, batches of 32;
         in CPU seconds of one thread, one step of each in turn. Above 1, hubmerge is faster.
embed    texts per second over those of `encode`, in CPU time

    python -m benchmarks.embeddings            MiniLM, six layers of width 384: 5 minutes
    python -m benchmarks.embeddings --quick    to see that it runs
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from benchmarks.cases import Case, fetch_minilm
from benchmarks.loops import Tick, run_hubmerge, run_interleaved
from hubmerge.learners.embedding import embedding_learner
from hubmerge.learners.retrieval import embed_documents
from hubmerge.models.loading import load_model
from hubmerge.tasks.data import Split
from hubmerge.tasks.lookup import find_task
from hubmerge.training.row_order import RowOrder

GOAL = 0.95
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dogs",
    "ran",
    "home",
    "under",
    "rain",
    "while",
    "people",
    "read",
    "books",
    "of",
    "old",
    "time",
]


def write_task(folder: Path, rows: int) -> Path:
    """Pairs of texts of 8 to 24 words, of which no two are the same."""
    draw = random.Random(0)

    def text(number: int) -> str:
        return f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(8, 24)))

    lines = [{"anchor": text(n), "positive": text(n)} for n in range(rows)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_library(case: Case, steps: int, rows: Split, tick: Tick) -> list[float]:
    """SentenceTransformerTrainer with every optional feature switched off."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    order, losses = RowOrder(len(rows), case.spec(steps).batch, seed=0), list[float]()
    numbers = [row for step in range(1, steps + 1) for _, row in order.rows_of_step(step)]
    pairs: list[Any] = [rows.example(row) for row in range(len(rows))]
    columns = {name: [getattr(pair, name) for pair in pairs] for name in ("anchor", "positive")}
    model = SentenceTransformer(str(case.base), device="cpu", local_files_only=True)
    loss = MultipleNegativesRankingLoss(model)

    class Ticking(TrainerCallback):
        def on_train_begin(self, *values: Any, **more: Any) -> None:
            tick()

        def on_step_end(self, *values: Any, **more: Any) -> None:
            tick()

    class Ordered(SentenceTransformerTrainer):
        def get_train_dataloader(self) -> Any:
            data, size = self.train_dataset, case.spec(steps).batch
            batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            return torch.utils.data.DataLoader(
                data, batch_sampler=batches, collate_fn=self.data_collator
            )

        def compute_loss(self, *values: Any, **more: Any) -> Any:
            result = super().compute_loss(*values, **more)
            losses.append(result.item())
            return result

    with tempfile.TemporaryDirectory() as folder:
        options = SentenceTransformerTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=case.spec(steps).batch,
            learning_rate=case.lr,
            weight_decay=0.1,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            log_level="error",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Ordered(
            model, options, Dataset.from_dict(columns), loss=loss, callbacks=[Ticking()]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure_training(case: Case, steps: int, repeats: int) -> list[float]:
    """The ratio of each repeat."""
    rows, ratios = case.training(), []
    for _ in range(repeats):
        seconds, losses = run_interleaved({
            "library": partial(run_library, case, steps, rows),
            "hubmerge": partial(run_hubmerge, case, steps, rows),
        })  # fmt: skip
        means = [statistics.mean(values) for values in losses.values()]
        if max(means) > 1.2 * min(means):
            raise SystemExit(f"The loops do not do the same work: {losses}")
        ratios.append(seconds["library"] / seconds["hubmerge"])
    return ratios


def measure_opening(folder: Path, repeats: int) -> list[float]:
    from sentence_transformers import SentenceTransformer

    def by_library() -> object:
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    load_model(folder, "pairs")  # imports are not counted
    by_library()
    return [
        cpu_seconds(by_library) / cpu_seconds(lambda: load_model(folder, "pairs"))
        for _ in range(repeats)
    ]


def measure_embedding(folder: Path, texts: Sequence[str], repeats: int) -> list[float]:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    learner, cpu = embedding_learner(load_model(folder, "pairs"), 512), torch.device("cpu")

    def by_library() -> object:
        return library.encode(list(texts), batch_size=64, show_progress_bar=False)

    def by_us() -> object:
        tokens = learner.encode_documents(texts)
        return embed_documents(learner, learner.network, tokens, 64, cpu)

    by_us()
    by_library()
    return [cpu_seconds(by_library) / cpu_seconds(by_us) for _ in range(repeats)]


def main() -> None:
    """Measure opening, training and embedding, and print the medians of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="steps of training in each repeat")
    parser.add_argument("--out", type=Path, help="file for the ratios of every repeat, as JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    repeats, steps, count = options.repeats, options.steps, 512
    if options.quick:
        repeats, steps, count = 1, 2, 64
    base = fetch_minilm()
    with tempfile.TemporaryDirectory() as scratch:
        task = find_task(str(write_task(Path(scratch), 768)))
        case = Case("minilm", base, task, steps, rows=384, full_steps=64, lr=2e-5)
        pairs: list[Any] = [case.training().example(row) for row in range(384)]
        texts = [text for pair in pairs for text in (pair.anchor, pair.positive)][:count]
        ratios = {
            "open": measure_opening(base, repeats),
            "train": measure_training(case, steps, repeats),
            "embed": measure_embedding(base, texts, repeats),
        }
    for name, values in ratios.items():
        median = statistics.median(values)
        print(f"{name:8}{median:6.2f}   {'met' if median >= GOAL else f'below {GOAL}'}")
    if options.out:
        options.out.write_text(json.dumps(ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
