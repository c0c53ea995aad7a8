"""Experts of conversations, from `hubmerge train` to peft; and rows that cannot be learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubmerge.tasks.lookup import read_task
from tests.end_to_end.conftest import Command, CommandResult
from tests.models.language_families import write_family

Row = dict[str, Any]

PAIRS = (("two and one", "3"), ("one and one", "2"), ("is this true", "Yes, it is."),
         ("the capital of France", "Paris"))  # fmt: skip
BRIEF = {"role": "system", "content": "You are a helpful assistant."}
OPTIONS = ("--tune", "lora", "--lr", "1e-2", "--steps", "2", "--push-every", "1,2", "--batch", "4",
           "--schedule", "constant", "--warmup-steps", "0")  # fmt: skip
# What the templates write before an answer, and the token after it.
AROUND_ANSWERS = {
    "llama3": ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "qwen": ("<|im_start|>assistant\n", "<|im_end|>"),
}
EACH_FAMILY = ["llama3", pytest.param("qwen", marks=pytest.mark.slow)]


def turns(pair: tuple[str, str]) -> list[Row]:
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


# Conversations of one and of two turns, with and without a system message.
CHATS = [
    [*([BRIEF] if number % 2 else []), *turns(pair), *(turns(PAIRS[0]) if number > 1 else [])]
    for number, pair in enumerate(PAIRS)
]


def write_rows(folder: Path, rows: Sequence[Row], name: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the family that the test names."""
    return write_family(tmp_path_factory.mktemp("chats") / request.param, request.param)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of conversations, the same in every split."""
    for name in ("train", "validation", "test"):
        write_rows(tmp_path / "rows", [{"messages": chat} for chat in CHATS], name)
    return tmp_path / "rows"


def train(hubmerge: Command, base: Path, task: Path, to: str, *more: str) -> CommandResult:
    return hubmerge("train", "--base", base, "--task", task, "--to", to, *OPTIONS, *more, "--json")


def answer_tokens(base: Path, chat: list[Row]) -> tuple[Tensor, Tensor]:
    """The tokens of a conversation [1, L], and which of them an assistant writes [L]."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    before, end = AROUND_ANSWERS[base.name]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    start, *answers = text.split(before)
    ids, is_answer = list[int](), list[bool]()
    for part, written in _parts(start, answers, before, end):
        tokens = tokenizer(part, add_special_tokens=False)["input_ids"]
        ids += tokens
        is_answer += [written] * len(tokens)
    assert ids == tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
    return torch.tensor([ids]), torch.tensor(is_answer)


def _parts(start: str, answers: Sequence[str], before: str, end: str) -> Iterator[tuple[str, bool]]:
    """The text of a conversation in parts, with whether the assistant writes them."""
    yield start, False
    for each in answers:
        answer, _, rest = each.partition(end)
        yield from ((before, False), (answer + end, True), (rest, False))


@torch.no_grad()
def measured(base: Path, model: Any, chats: list[list[Row]]) -> tuple[float, float]:
    """The mean loss of all tokens that the assistant writes, and the share of them that is right.

    By transformers alone, one conversation at a time.
    """
    losses, right = list[Tensor](), list[Tensor]()
    for chat in chats:
        ids, is_answer = answer_tokens(base, chat)
        logits = model(input_ids=ids).logits[0, :-1].float()
        expected, counts = ids[0, 1:], is_answer[1:]
        picked = logits.log_softmax(-1).gather(-1, expected[:, None]).squeeze(-1)
        losses.append(-picked[counts])
        right.append((logits.argmax(-1) == expected)[counts])
    return torch.cat(losses).mean().item(), torch.cat(right).float().mean().item()


@pytest.mark.parametrize("base", EACH_FAMILY, indirect=True)
def test_chats_are_learned_published_evaluated_and_loaded(
    hubmerge: Command, api: HfApi, base: Path, rows: Path
) -> None:
    task = rows.parent / "chats.yaml"
    files = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    fields = {
        "name": "chats",
        "kind": "target",
        "format": "messages",
        "data": {"path": "rows", "files": files},
        "splits": {name: name for name in files},
    }
    task.write_text(yaml.safe_dump(fields))
    to = f"chats/{base.name}"
    result = train(hubmerge, base, task, to)
    assert result.code == 0, result.err
    # The loss of the first step is the base's, as LoRA's B is 0, over the answers of all rows.
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    loss, _ = measured(base, plain, CHATS)
    first = result.data["validation"][1]
    assert (first["step"], first["loss"]) == (1, pytest.approx(loss, abs=1e-4))

    manifest = json.loads(
        Path(api.hf_hub_download(to, "hubmerge.json", revision="step2")).read_text()
    )
    assert (manifest["task_kind"], manifest["training"]["tune"]) == ("target", "lora")
    written = Path(api.hf_hub_download(to, "task.yaml", revision="step2"))
    assert read_task(written).spec.format == "messages"
    assert manifest["task"].startswith("chats@")
    result = hubmerge("eval", f"{to}@step2", "--split", "test", "--json")
    assert result.code == 0, result.err
    (score,) = result.data
    assert score["task"] == manifest["task"]

    folder = api.snapshot_download(to, revision="step2")
    expert = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    tuned_loss, accuracy = measured(base, expert, CHATS)
    assert tuned_loss < loss - 0.1
    assert score["value"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("base", ["llama3"], indirect=True)
def test_chats_are_recognised_by_their_columns(
    hubmerge: Command, api: HfApi, base: Path, rows: Path
) -> None:
    result = train(hubmerge, base, rows, "chats/columns")
    assert result.code == 0, result.err
    text = Path(api.hf_hub_download("chats/columns", "task.yaml", revision="step1")).read_text()
    assert yaml.safe_load(text)["format"] == "messages"
    loss, _ = measured(base, AutoModelForCausalLM.from_pretrained(base).eval(), CHATS)
    assert result.data["validation"][1]["loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("base", EACH_FAMILY, indirect=True)
def test_packed_chats_are_learned_like_others(
    hubmerge: Command, api: HfApi, base: Path, rows: Path
) -> None:
    results = {}
    for name, option in {"apart": "--no-pack", "packed": "--pack"}.items():
        result = train(hubmerge, base, rows, f"{name}/{base.name}", option)
        assert result.code == 0, result.err
        results[name] = result.data
    for apart, packed in zip(*(each["validation"] for each in results.values()), strict=True):
        assert packed == pytest.approx(apart, abs=1e-4)
    assert results["packed"]["run"] != results["apart"]["run"]
    file = api.hf_hub_download(f"packed/{base.name}", "hubmerge.json", revision="step2")
    assert json.loads(Path(file).read_text())["training"]["pack"] is True


MESSAGES = {"messages": CHATS[0]}
SILENT = {"messages": [*turns(PAIRS[0])[:1], {"role": "assistant", "content": ""}]}
TWO_USERS = {"messages": [*turns(PAIRS[0])[:1], *turns(PAIRS[1])]}
SHARED = {"conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "Yes"}]}
SHARED_AS_ROLES = {"conversations": turns(PAIRS[0])}


@pytest.mark.parametrize(
    ("base", "good", "bad", "code", "sentence", "hint"),
    [
        ("gpt2", MESSAGES, MESSAGES, 2, "Conversations need a chat template", "instruction-tuned"),
        ("t5", MESSAGES, MESSAGES, 2, "Conversations need a decoder", "`prompt:` and `target:`"),
        ("llama3", MESSAGES, SILENT, 1, "an answer in train row 30 is empty", "Mend or remove"),
        ("llama3", MESSAGES, TWO_USERS, 1,
         "the roles of train row 30 are user, user, assistant", "must take turns"),
        ("llama3", MESSAGES, {"prompt": "Is it?", "completion": "Yes"}, 1,
         "train row 30 has no `messages`", "rows of other shapes"),
        ("llama3", {"prompt": "Is it?", "completion": "Yes"},
         {"prompt": turns(PAIRS[0])[:1], "completion": turns(PAIRS[0])[1:]}, 1,
         "its rows are mixed: text (train row 0) and messages with `role` (train row 30)",
         "all rows in one shape"),
        ("llama3", SHARED, SHARED_AS_ROLES, 1, "its rows are mixed", "all rows in one shape"),
    ],
    indirect=["base"],
)  # fmt: skip
def test_rows_that_cannot_be_learned_are_refused_before_training(
    hubmerge: Command, api: HfApi, base: Path, tmp_path: Path, good: Row, bad: Row, code: int,
    sentence: str, hint: str,
) -> None:  # fmt: skip
    folder = write_rows(tmp_path / "rows", [*([good] * 30), bad])
    write_rows(folder, [good], "validation")
    write_rows(folder, [good], "test")
    result = train(hubmerge, base, folder, "chats/never")
    assert (result.code, result.out) == (code, ""), result.err
    assert sentence in result.err
    assert hint in result.err
    assert "Traceback" not in result.err
    assert not api.repo_exists("chats/never")


@pytest.mark.parametrize("base", ["qwen"], indirect=True)
def test_an_answer_without_a_token_of_its_own_is_refused_before_training(
    hubmerge: Command, api: HfApi, base: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows", [{"q": "one two th", "a": "ree"}] * 30)
    fields = {
        "name": "words",
        "kind": "target",
        "data": {"path": "rows/train.jsonl"},
        "splits": {"test": {"of": "train", "fraction": 0.2}},
        "prompt": "{{ q }}",
        "target": "{{ a }}",
        "join": "",
    }
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(fields))
    result = train(hubmerge, base, tmp_path / "words.yaml", "chats/never")
    assert (result.code, result.out) == (1, ""), result.err
    assert "has no token of its own" in result.err
    assert not api.repo_exists("chats/never")


@pytest.mark.parametrize(
    ("base", "task", "more", "sentence"),
    [
        ("t5", {"prompt": "Is it?", "completion": "Yes"}, (), "--pack needs a decoder"),
        ("llama3", "mini-mnist", (), "--pack is for tasks of `kind: target`"),
        ("llama3", MESSAGES, ("--tune", "prefix"), "pack keeps rows apart by positions"),
    ],
    indirect=["base"],
)
def test_what_cannot_be_packed_is_refused_before_training(
    hubmerge: Command, api: HfApi, base: Path, task: Row | str, more: tuple[str, ...],
    sentence: str, tmp_path: Path,
) -> None:  # fmt: skip
    data = Path(task) if isinstance(task, str) else write_rows(tmp_path / "rows", [task] * 30)
    result = train(hubmerge, base, data, "chats/never", "--pack", *more)
    assert (result.code, result.out) == (2, ""), result.err
    assert sentence in result.err
    assert not api.repo_exists("chats/never")
