"""The speed of tasks of lm_eval as ratios, measured in one run.

choices  rows per second of `hubmerge eval` on a task of four choices, and of the rows of one trial
         of `hubmerge select`, over lm_eval's own evaluation with batches of 16 and of 1 (its
         default), and over a bare loop over batches of 16 that are sorted by length.
texts    the same for a task of generated texts of at most 24 tokens.
memory   the most memory of a process with one of the loops alone, in MB.

A small random Llama, float32, one thread, in CPU seconds; questions are written and models are
opened before.

    python -m benchmarks.lm_eval            ten minutes on an idle machine
    python -m benchmarks.lm_eval --quick    to see that it runs
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import argparse
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from benchmarks.cases import BUILD, SYLLABLES, make_tiny_llama
from hubmerge.evaluation import Examples
from hubmerge.learners.factory import make_learner
from hubmerge.learners.lm_eval_model import measure_docs
from hubmerge.models.loading import load_model
from hubmerge.row_values import lm_eval_values, measure_rows
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lm_eval_task import find_lm_eval_task

OUT = BUILD / "bench-lm-eval.json"
BATCH, MOST_TOKENS = 16, 24
DEVICE = torch.device("cpu")
Loop = Callable[[], float]  # returns the mean of the metric, or of what stands for it


@dataclass(frozen=True)
class Row:
    """One line of the table: rows per second, or MB, of both; and the median of the ratios."""

    task: str
    what: str
    ours: float
    theirs: float
    ratio: float
    goal: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal


def write_base(folder: Path) -> Path:
    """A random Llama of 5 M weights, whose tokenizer adds nothing to a text."""
    make_tiny_llama(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save_pretrained(folder)
    return folder


def write_tasks(folder: Path, rows: int) -> Path:
    """A task of choices and one of texts, with questions of 8 to 80 words."""
    folder.mkdir()
    source = random.Random(0)
    questions = [
        {
            "question": _words(source, 8, 80),
            "choices": [_words(source, 1, 8) for _ in range(4)],
            "label": source.randrange(4),
        }
        for _ in range(rows)
    ]
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    kinds: dict[str, dict[str, Any]] = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "{{choices}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        "texts": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": MOST_TOKENS, "do_sample": False},
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            ],
        },
    }
    for name, fields in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **fields}))
    return folder


def _words(source: random.Random, least: int, most: int) -> str:
    count = source.randint(least, most)
    return " ".join(
        "".join(source.choices(SYLLABLES, k=source.randint(1, 3))) for _ in range(count)
    )


def make_loops(base: Path, tasks: Path, name: str) -> tuple[dict[str, Loop], int]:
    """Every way to measure a task, by name, and its number of rows."""
    task = find_lm_eval_task(f"lm-eval:{name}", tasks)
    split = load_split(task, "all")
    learner: Any = make_learner(load_model(base, "target"), task, None, augment=False)
    assert split.lm_eval is not None
    model, tokenizer = learner.network.model, learner.encoder.pairs.tokenizer
    measure_docs(model, tokenizer, split.lm_eval, [0], BATCH)  # questions are written once
    loops = {
        "eval": lambda: statistics.mean(
            lm_eval_values(learner, learner.network, split, range(len(split)))
        ),
        "select": partial(_measure_trial, learner, split),
        "lm_eval 16": partial(_measure_by_lm_eval, model, tokenizer, split, BATCH),
        "lm_eval 1": partial(_measure_by_lm_eval, model, tokenizer, split, 1),
        "bare": partial(_BARE[name], model, tokenizer, split),
    }
    return loops, len(split)


def _measure_trial(learner: Any, split: Split) -> float:
    examples = Examples(learner.for_evaluation, split)
    rows = range(len(split))
    return measure_rows(learner, learner.network, examples, rows, DEVICE).mean


def _measure_by_lm_eval(model: Any, tokenizer: Any, split: Split, batch_size: int) -> float:
    """lm_eval's evaluation, in which it writes the questions, which takes little time."""
    assert split.lm_eval is not None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    task = split.lm_eval.harness_task
    results = evaluator.evaluate(
        lm=harness,
        task_dict={"tasks": {task.task_name: task}},
        bootstrap_iters=0,
        log_samples=False,
    )
    return float(results["results"][task.task_name][split.task.metric])


@torch.inference_mode()
def _measure_choices_bare(model: Any, tokenizer: Any, split: Split) -> float:
    """The share of rows whose right choice has the highest log-likelihood."""
    assert split.lm_eval is not None
    rows = []
    for doc in split.lm_eval.docs:
        context = tokenizer(doc["question"])["input_ids"]
        texts = [f"{doc['question']} {choice}" for choice in doc["choices"]]
        rows += [(ids, len(context)) for ids in tokenizer(texts)["input_ids"]]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
    scores = torch.empty(len(rows))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        longest = len(rows[batch[0]][0])
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for number, row in enumerate(batch):
            ids[number, : len(rows[row][0])] = torch.tensor(rows[row][0])
        log_probs = model(ids[:, :-1]).logits.log_softmax(dim=-1)
        chosen = log_probs.gather(2, ids[:, 1:, None]).squeeze(-1)
        for number, row in enumerate(batch):
            tokens, begin = rows[row]
            scores[row] = chosen[number, begin - 1 : len(tokens) - 1].sum()
    answers = torch.tensor([doc["label"] for doc in split.lm_eval.docs])
    return float((scores.view(-1, 4).argmax(dim=-1) == answers).float().mean())


@torch.inference_mode()
def _measure_texts_bare(model: Any, tokenizer: Any, split: Split) -> float:
    """The share of rows whose generated text is the reference."""
    assert split.lm_eval is not None
    docs = sorted(split.lm_eval.docs, key=lambda doc: -len(doc["question"]))
    right = 0
    for start in range(0, len(docs), BATCH):
        batch = docs[start : start + BATCH]
        encoded = tokenizer(
            [doc["question"] for doc in batch],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        output = model.generate(**encoded, max_new_tokens=MOST_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(
            output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True
        )
        answers = (doc["choices"][0] for doc in batch)
        right += sum(a.partition("\n")[0] == b for a, b in zip(texts, answers, strict=True))
    return right / len(docs)


_BARE: dict[str, Callable[..., float]] = {
    "choices": _measure_choices_bare,
    "texts": _measure_texts_bare,
}


def measure_speed(base: Path, tasks: Path, name: str, repeats: int) -> Iterator[Row]:
    """Rows per second of all loops, in turn."""
    loops, rows = make_loops(base, tasks, name)
    per_second: dict[str, list[float]] = {key: [] for key in loops}
    for repeat in range(repeats + 1):
        values = {}
        for key, loop in loops.items():
            began = time.thread_time()
            values[key] = loop()
            seconds = time.thread_time() - began
            if repeat:  # the first time is for what is done once in a process
                per_second[key].append(rows / seconds)
        if max(values.values()) - min(values.values()) > 0.02:
            raise SystemExit(f"{name}: the loops do not do the same work: {values}")
    for ours in ("eval", "select"):
        for theirs, goal in (("lm_eval 16", 1.0), ("lm_eval 1", 1.0), ("bare", 0.95)):
            pairs = zip(per_second[ours], per_second[theirs], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            medians = (statistics.median(per_second[key]) for key in (ours, theirs))
            yield Row(name, f"{ours}: rows/s over {theirs}", *medians, ratio, goal)


def measure_memory(base: Path, tasks: Path, name: str) -> Row:
    """The most memory of a process that measures all rows once."""
    sizes = [_most_megabytes(base, tasks, name, loop) for loop in ("eval", "lm_eval 16")]
    return Row(name, "eval: MB over lm_eval 16", *sizes, sizes[0] / sizes[1], 1.05, at_least=False)


def _most_megabytes(base: Path, tasks: Path, name: str, loop: str) -> float:
    words = ["--alone", str(base), str(tasks), name, loop]
    command = [sys.executable, "-m", "benchmarks.lm_eval", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def run_alone(words: Sequence[str]) -> None:
    """Run one loop, and print the most memory of this process, in MB."""
    base, tasks, name, loop = words
    make_loops(Path(base), Path(tasks), name)[0][loop]()
    status = Path("/proc/self/status").read_text()  # getrusage has the parent's, too
    print(next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024)


def main() -> None:
    """Print every row as it is measured, and write all rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows, once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        run_alone(options.alone)
        return
    repeats = 1 if options.quick else options.repeats
    print(f"{'task':9}{'what':34}{'ours':>9}{'theirs':>9}{'ratio':>8}{'goal':>9}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base")
        tasks = write_tasks(Path(folder) / "tasks", 24 if options.quick else options.rows)
        for name in _BARE:
            parts = [*measure_speed(base, tasks, name, repeats), measure_memory(base, tasks, name)]
            for row in parts:
                rows.append(row)
                print(_line(row), flush=True)
    BUILD.mkdir(exist_ok=True)
    value = {
        "repeats": repeats,
        "rows_of_a_task": options.rows,
        "load": os.getloadavg(),
        "lm_eval": version("lm_eval"),
        "torch": version("torch"),
        "rows": [{**asdict(row), "met": row.met} for row in rows],
    }
    OUT.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    goal = f"{'>=' if row.at_least else '<='} {row.goal:.2f}"
    return (
        f"{row.task:9}{row.what:34}{row.ours:9.2f}{row.theirs:9.2f}{row.ratio:8.3f}{goal:>9}"
        f"  {'met' if row.met else 'NOT MET'}"
    )


if __name__ == "__main__":
    main()
