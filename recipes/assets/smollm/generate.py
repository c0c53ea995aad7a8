"""Answers of a merged model, by transformers alone.

    python -m recipes.assets.smollm.generate FOLDER [ROWS]

prints the questions of the first test rows of each task, what the model answers, and the right answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.assets.smollm.rows import HERE, TASKS


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The most likely answer to a conversation that ends with a user's message."""
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0]
    text: str = tokenizer.decode(tokens[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def main(folder: str, count: int) -> None:
    """Print questions and answers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for task in TASKS:
        for line in (HERE / task / "test.jsonl").read_text().splitlines()[:count]:
            *messages, right = json.loads(line)["messages"]
            given = answer(model, tokenizer, messages)
            expected = "" if given == right["content"] else f"   (right: {right['content']})"
            print(f"{messages[-1]['content']} -> {given}{expected}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
