"""Answers of a merged model, by transformers alone.

    python -m recipes.assets.smollm.generate FOLDER TASK...

prints the questions of the first test rows of each task and what the model answers, with the right
answer where that is another.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
SHOWN = 3  # rows of each task


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The most likely answer to a conversation that ends with a user's message."""
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0]
    text: str = tokenizer.decode(tokens[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def main(folder: str, tasks: list[str]) -> None:
    """Print questions and answers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for task in tasks:
        for line in (HERE / task / "test.jsonl").read_text().splitlines()[:SHOWN]:
            *messages, right = json.loads(line)["messages"]
            given = answer(model, tokenizer, messages)
            expected = "" if given == right["content"] else f"   (right: {right['content']})"
            print(f"{messages[-1]['content']} -> {given}{expected}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
