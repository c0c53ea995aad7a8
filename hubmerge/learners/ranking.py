"""Language models: trained on a target after a prompt, evaluated by ranking several targets.

Rank classification as in T-Few and TIES (arXiv 2205.05638, 2306.01708): the score of a choice is
the sum of the log-probabilities of its tokens, including end of sequence unless the task says
`eos: false`, not normalised by length.
Shapes: B prompts, P tokens of the longest prompt, N targets (one or more for each prompt), L tokens
of the longest target, C targets of the prompt with the most, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput

from hubmerge.learners.classification import check_finite, pad_right
from hubmerge.learners.learner import Batch, Example
from hubmerge.learners.packing import packed_batch
from hubmerge.learners.row_encoder import IGNORED, EncodedRow, RowEncoder
from hubmerge.tasks.examples import LanguageExample


class TargetScorer(nn.Module):
    """A language model that scores targets given prompts.

    Returns the log-probability of every target token and the token predicted in its place, both
    [N, L]; the log-probability of padding is 0.
    """

    def __init__(self, model: nn.Module, is_seq2seq: bool, shares_encoder: bool = True) -> None:
        super().__init__()
        self.model, self._is_seq2seq, self._shares_encoder = model, is_seq2seq, shares_encoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        owner: Tensor | None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rows that are packed have `position_ids`, and neither `attention_mask` nor `owner`."""
        if self._is_seq2seq:
            assert attention_mask is not None
            assert owner is not None
            logits = self._decoder_logits(input_ids, attention_mask, labels, owner)
        else:  # the logits at a token predict the next token
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            if position_ids is not None:
                inputs["position_ids"] = position_ids
            output = self.model(**inputs, use_cache=False)
            logits, labels = output.logits[:, -labels.shape[1] : -1], labels[:, 1:]
        losses = cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return -losses.view_as(labels), logits.argmax(dim=-1)

    def _decoder_logits(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, owner: Tensor
    ) -> Tensor:
        """Logits [N, L, V]; with a shared encoder, each prompt is encoded only once."""
        inputs: dict[str, Any] = {"input_ids": input_ids[owner]}
        if self._shares_encoder:
            encoder = cast(Any, self.model).get_encoder()
            hidden = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            inputs = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden[owner])}
        # Given labels, the model would also compute their loss, which is not needed.
        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        inputs |= {"decoder_input_ids": shift(labels)} if shift else {"labels": labels}
        output = self.model(**inputs, attention_mask=attention_mask[owner], use_cache=False)
        return cast(Tensor, output.logits)


@dataclass(frozen=True)
class LanguageLearner:
    """Rows as tokens of `encoder`, under a language model.

    In a batch, `owner` [N] is the index of the prompt that a target belongs to. With `packs`, a
    batch for training has rows packed into sequences, and neither owners nor an attention mask.
    """

    network: TargetScorer
    encoder: RowEncoder
    augments: bool = False
    packs: bool = False

    @property
    def is_seq2seq(self) -> bool:
        return self.encoder.pairs.is_seq2seq

    def for_training(self, example: LanguageExample, seed: int) -> Example:
        return _as_tensors(self.encoder.encode_for_training(example))

    def for_evaluation(self, example: LanguageExample) -> Example:
        return _as_tensors(self.encoder.encode(example))

    def collate(self, examples: Sequence[Example]) -> Batch:
        owner = [index for index, example in enumerate(examples) for _ in example["targets"]]
        labels = [row for example in examples for row in example["labels"]]
        answer = torch.tensor([example["answer"] for example in examples])
        batch = {"owner": torch.tensor(owner), "answer": answer}
        prompts = [example["input_ids"] for example in examples]
        if self.is_seq2seq:
            return batch | self._pad(prompts) | {"labels": pad_right(labels, IGNORED)}
        targets = [target for example in examples for target in example["targets"]]
        texts = [torch.cat([prompts[n], t]) for n, t in zip(owner, targets, strict=True)]
        masked = [torch.full_like(prompts[n], IGNORED) for n in owner]
        labels = [torch.cat([m, row]) for m, row in zip(masked, labels, strict=True)]
        if self.packs:
            pad_id = self.encoder.pairs.tokenizer.pad_token_id
            return packed_batch(texts, labels, self.encoder.longest_text, pad_id, IGNORED)
        return batch | self._pad(texts) | {"labels": pad_right(labels, IGNORED)}

    def count_terms(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        log_probs, _ = self._score_tokens(network, batch)
        return -log_probs.sum()

    def predict(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        log_probs, tokens = self._score_tokens(network, batch)
        check_finite(log_probs)
        if int(batch["answer"][0]) < 0:  # no choices: each token of the target is a prediction
            labels = batch["labels"] if self.is_seq2seq else batch["labels"][:, 1:]
            is_padding = labels == IGNORED
            return tokens.masked_fill(is_padding, -1), labels.masked_fill(is_padding, -1)
        scores = scores_by_prompt(log_probs.sum(dim=-1), batch["owner"])
        return scores.argmax(dim=-1, keepdim=True), batch["answer"].unsqueeze(-1)

    def scores(self, network: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities of each prompt's choices [B, C], -inf where it has fewer."""
        log_probs, _ = self._score_tokens(network, batch)
        return scores_by_prompt(log_probs.sum(dim=-1), batch["owner"])

    def _score_tokens(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        names = ("input_ids", "attention_mask", "labels", "owner", "position_ids")
        return cast("tuple[Tensor, Tensor]", network(*(batch.get(name) for name in names)))

    def _pad(self, rows: Sequence[Tensor]) -> Batch:
        ids = pad_right(rows, self.encoder.pairs.tokenizer.pad_token_id)
        mask = pad_right([torch.ones_like(row) for row in rows], 0)
        return {"input_ids": ids, "attention_mask": mask}


def _as_tensors(row: EncodedRow) -> Example:
    targets = [torch.tensor(target) for target in row.targets]
    # Usually every token of a target counts, and one copy is kept.
    labels = targets if row.labels is row.targets else [torch.tensor(r) for r in row.labels]
    prompt = torch.tensor(row.prompt)
    return {"input_ids": prompt, "targets": targets, "labels": labels, "answer": row.answer}


def scores_by_prompt(scores: Tensor, owner: Tensor) -> Tensor:
    """Scores [N] of targets as one row for each prompt [B, C], -inf where it has fewer targets."""
    counts = torch.bincount(owner)
    offsets = counts.cumsum(0) - counts
    column = torch.arange(len(owner), device=owner.device) - offsets[owner]
    rows = scores.new_full((len(counts), int(counts.max())), -torch.inf)
    rows[owner, column] = scores
    return rows
