"""Log-likelihoods of answers are those of lm_eval on the same strings.

The rule of lm_eval 0.4.13 is written out here, one string at a time: `_encode_pair` and
`loglikelihood` of lm_eval/api/model.py, `_loglikelihood_tokens` of lm_eval/models/huggingface.py.
Where lm_eval is installed, it is compared, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from hubmerge.learners.factory import make_learner
from hubmerge.models.loading import load_model
from hubmerge.tasks.examples import RankExample
from tests.learners.builders import scores, task
from tests.models.language_families import FAMILIES, write_family

CHATML = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
# (context, continuations) as lm_eval takes them.
STRINGS = [
    ("Question: is this true?\nAnswer:", (" Yes", " no, it is not.")),
    ("The capital of France is", (" Paris", " the cat", " mat and the cat")),
    ("The capital of France is ", ("Paris", "the cat")),
    ("one, two =\n", ("1 2 3", "three")),
    (CHATML, ("Yes, it is.", "no")),
    ("<s>[INST] Is it? [/INST]", (" Yes</s>", " no</s>")),
    ("<bos><start_of_turn>user\nIs it?<end_of_turn>\n<start_of_turn>model\n", ("Yes", "no")),
    ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", ("Yes<|eot_id|>", "no")),
    ("<|endoftext|>The cat", (" sat on the mat", " is dull")),
    ("123", ("12", "3")),
    ("", ("The cat sat on the mat.", "good films are fun")),
]
close = pytest.approx


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("families") / request.param, request.param)


@pytest.fixture(scope="module")
def learner(folder: Path) -> Any:
    model = load_model(folder, "rank")
    return make_learner(model, task("rank", join="", eos=False), None, augment=False)


class Reference:
    """lm_eval's log-likelihoods, computed without padding or truncation."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.is_seq2seq = folder.name == "t5"
        auto: Any = AutoModelForSeq2SeqLM if self.is_seq2seq else AutoModelForCausalLM
        self.model = auto.from_pretrained(folder).eval()
        begin = self.tokenizer.bos_token_id
        self.prefix = self.tokenizer.eos_token_id if begin is None else begin

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        if special is None and text.startswith(self.tokenizer.decode([self.prefix])):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        ids: list[int] = self.tokenizer.encode(text, **options)
        return ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context == "":
            ids = self.encode(continuation, special=False)
            return ([self.prefix], ids) if ids[0] != self.prefix else (ids[:1], ids[1:])
        spaces = len(context) - len(context.rstrip())
        if spaces:
            continuation = context[-spaces:] + continuation
            context = context[:-spaces]
        if self.is_seq2seq:
            return self.encode(context), self.encode(continuation, special=False)
        ids = self.encode(context)
        return ids, self.encode(context + continuation)[len(ids) :]

    @torch.no_grad()
    def score(self, context: str, continuation: str) -> float:
        before, after = self.pair(context, continuation)
        if self.is_seq2seq:
            output = self.model(torch.tensor([before]), labels=torch.tensor([after]))
            logits = output.logits[0]
        else:
            logits = self.model(torch.tensor([[*before, *after][:-1]])).logits[0, -len(after) :]
        log_probs = logits.float().log_softmax(dim=-1)
        return sum(log_probs[n, token].item() for n, token in enumerate(after))


def test_log_likelihoods_are_those_of_the_rule_of_lm_eval(folder: Path, learner: Any) -> None:
    reference = Reference(folder)
    for context, continuations in STRINGS:
        expected = [reference.score(context, each) for each in continuations]
        [result] = scores(learner, RankExample(context, continuations, 0))
        assert result == close(expected, abs=1e-4), context


def test_log_likelihoods_do_not_depend_on_the_batch(folder: Path, learner: Any) -> None:
    examples = [RankExample(context, each, 0) for context, each in STRINGS]
    alone = [scores(learner, example)[0] for example in examples]
    for result, expected in zip(scores(learner, *examples), alone, strict=True):
        assert result == close(expected, abs=1e-4)


def test_log_likelihoods_are_those_of_lm_eval(folder: Path, learner: Any) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is an extra")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    for context, continuations in STRINGS:
        requests = [
            Instance("loglikelihood", {}, (context, each), index)
            for index, each in enumerate(continuations)
        ]
        expected = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]
        [result] = scores(learner, RankExample(context, continuations, 0))
        assert result == close(expected, abs=1e-4), context


@pytest.mark.parametrize("answer", ["Yes", "no, it is not."])
def test_a_chat_template_that_is_written_out_scores_as_it_is_written(
    folder: Path, answer: str
) -> None:
    """By default nothing is put after a template, and a space after a word."""
    model = load_model(folder, "rank")
    default = make_learner(model, task("rank", eos=False), None, augment=False)
    reference = Reference(folder)
    space = "" if reference.is_seq2seq else " "
    for prompt, join in (("Question: is this true? Answer:", space), (CHATML, "")):
        [result] = scores(default, RankExample(prompt, (answer, "Or"), 0))
        assert result[0] == close(reference.score(prompt, join + answer), abs=1e-4)
