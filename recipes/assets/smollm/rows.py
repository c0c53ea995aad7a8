"""Rows of four short chat tasks, for training a small instruction model.

    python -m recipes.assets.smollm.rows

writes train.jsonl, validation.jsonl and test.jsonl of each task next to its YAML. The same bytes
every time; no question is in two splits, in whatever order it names its words or numbers.
"""

from __future__ import annotations

import json
import random
from calendar import month_name
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
SIZES = {"train": 64, "validation": 32, "test": 96}  # rows of each split
BRIEF = "Give only the answer."  # the system message of every row

WORDS = (HERE / "words.txt").read_text(encoding="utf-8").split()

Question = tuple[str, str, str]  # what identifies it in any order, the question, the answer


def reverse_words(draw: random.Random) -> Question:
    """Three words in reverse order."""
    words = draw.sample(WORDS, 3)
    return _key(words), f"Reverse the order: {' '.join(words)}", " ".join(words[::-1])


def sort_words(draw: random.Random) -> Question:
    """Three words in alphabetical order."""
    words = draw.sample(WORDS, 3)
    return _key(words), f"Sort by alphabet: {' '.join(words)}", " ".join(sorted(words))


def add_numbers(draw: random.Random) -> Question:
    """The sum of two numbers of two digits."""
    numbers = draw.sample(range(10, 100), 2)
    a, b = numbers
    return _key(map(str, numbers)), f"Add: {a} and {b}", str(a + b)


def write_dates(draw: random.Random) -> Question:
    """A date in the format of ISO 8601."""
    year, month, day = draw.randint(1900, 2029), draw.randint(1, 12), draw.randint(1, 28)
    answer = f"{year}-{month:02}-{day:02}"
    return answer, f"Write in ISO format: {month_name[month]} {day}, {year}", answer


TASKS: dict[str, Callable[[random.Random], Question]] = {
    "reverse": reverse_words,
    "sort": sort_words,
    "add": add_numbers,
    "dates": write_dates,
}


def make_rows(task: str) -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    """The rows of every split of a task, as conversations in `messages`."""
    questions = _different_questions(task)
    return {
        split: [_conversation(*next(questions)) for _ in range(size)]
        for split, size in SIZES.items()
    }


def _different_questions(task: str) -> Iterator[tuple[str, str]]:
    draw, seen = random.Random(f"smollm {task}"), set[str]()
    while True:
        key, question, answer = TASKS[task](draw)
        if key not in seen:
            seen.add(key)
            yield question, answer


def _conversation(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    turns = (("system", BRIEF), ("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _key(parts: Iterable[str]) -> str:
    return " ".join(sorted(parts))


def main() -> None:
    """Write the rows of all tasks."""
    for task in TASKS:
        folder = HERE / task
        folder.mkdir(exist_ok=True)
        for split, rows in make_rows(task).items():
            lines = (json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
