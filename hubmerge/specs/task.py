"""The YAML of a task: its data, its prompts or class names, and its metric."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hubmerge.metric_names import GENERATION_METRICS, LIKELIHOOD, RETRIEVAL_METRICS
from hubmerge.refs import check_label
from hubmerge.specs.parsing import Spec, as_value_error
from hubmerge.specs.task_data import CorpusSpec, DataSpec, SplitsSpec

Kind = Literal["image", "text", "rank", "target", "pairs"]
Head = Literal["label", "trained"]
Format = Literal["messages", "conversations", "completion", "preference", "alpaca", "text"]
Metric = Literal[
    "accuracy", "token_accuracy", "exact_match", "contains", "f1", "rouge_l",
    "ndcg_at_10", "mrr_at_10", "recall_at_10", "accuracy_at_1",
]  # fmt: skip

_LANGUAGE_KEYS = ("max_tokens", "join", "eos", "chat", "max_new_tokens", "stop")
# Keys that only some kinds of task have; in other kinds they would be ignored, so they are refused.
_KEYS_BY_KIND = {
    "image": {"head", "templates", "classes"},
    "text": {"head", "templates", "classes", "max_tokens"},
    "rank": {"prompt", "choices", "answer", *_LANGUAGE_KEYS},
    "target": {"prompt", "target", "format", *_LANGUAGE_KEYS},
    "pairs": {"anchor", "positive", "negative", "relevant", "corpus", "max_tokens"},
}
_REQUIRED_KEYS = {
    "rank": ("prompt", "choices", "answer"),
    "target": ("prompt", "target"),
    "pairs": ("anchor",),
}
_METRIC_BY_KIND = {"target": "token_accuracy", "pairs": "ndcg_at_10"}
_CHAT_FORMATS = ("messages", "conversations")
_MAX_TOKENS_IN_TOTAL = 1024  # the default for conversations and texts
_MAX_TOKENS_OF_PAIRS = 512  # the default for each text of a pair, if the model takes as many
_TEMPLATES_BY_KIND = {"text": ("This text is about {}.",)}


class TaskSpec(Spec):
    """A task of one of five kinds, with its data and splits.

    `image` and `text`: classification with a frozen head of label embeddings from `templates` and
    `classes` (empty: the label names of the data), or with a `trained` head. `rank`: `prompt`,
    `choices` and `answer`, the index of the correct choice, are jinja2 over the columns of a row;
    the model ranks the choices by their probability. `target`: `prompt` and `target` of supervised
    fine-tuning. `join` is what stands between a prompt and what follows it: by default a space for
    decoders, unless the prompt ends with white space or a token such as those of chat templates.
    What follows ends with end of sequence, unless `eos` is false. With `chat`, the prompt is a
    user's message in the tokenizer's chat template, and what follows is the answer. Instead of a
    prompt and a target, `format` names that of the rows, such as `messages`. Texts are truncated to
    `max_tokens`. `pairs`: an `anchor` and its `positive`, both jinja2 over the columns of a row,
    get embeddings that are near, and far from the `negative` if there is one and from the positives
    of other rows; instead of a positive, the expression `relevant` may give the ids of documents of
    a `corpus`. Texts that the model generates to be measured end after `max_new_tokens`, at end
    of sequence, or before any of the strings `stop`.
    """

    name: str
    version: Annotated[int, Field(ge=1)] = 1
    kind: Kind = "image"
    title: str = ""
    source: str = ""
    licence: str = ""
    metric: Metric = "accuracy"
    data: DataSpec
    splits: SplitsSpec = SplitsSpec()
    head: Head = "label"
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    prompt: str = ""
    choices: str | tuple[str, ...] = ()
    answer: str = ""
    target: str = ""
    join: Literal["", " "] | None = None
    eos: bool = True
    chat: bool = False
    format: Format | None = None
    anchor: str = ""
    positive: str = ""
    negative: str = ""
    relevant: str = ""
    corpus: CorpusSpec | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] = 64
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @property
    def is_classification(self) -> bool:
        """Whether examples have classes from a fixed list."""
        return self.kind in ("image", "text")

    @model_validator(mode="before")
    @classmethod
    def _fill_kind_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(kind := values.get("kind"), str):
            return values
        in_total = values.get("format") or values.get("chat")
        defaults = {
            "metric": _METRIC_BY_KIND.get(kind),
            "templates": _TEMPLATES_BY_KIND.get(kind),
            "max_tokens": _MAX_TOKENS_OF_PAIRS
            if kind == "pairs"
            else _MAX_TOKENS_IN_TOTAL
            if in_total
            else None,
        }
        return {key: value for key, value in defaults.items() if value} | values

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return as_value_error(check_label, name, "task")

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        invalid = [template for template in templates if template.count("{}") != 1]
        if invalid:
            raise ValueError(f"{invalid[0]!r} needs exactly one {{}} for the class name")
        return templates

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        repeated = [name for name, count in Counter(classes).items() if count > 1]
        if repeated:
            raise ValueError(f"{repeated[0]!r} is listed twice; class names must be different")
        if len(classes) == 1:
            raise ValueError("a classification task needs two classes or more")
        return classes

    @field_validator("prompt", "target", "anchor", "positive", "negative")
    @classmethod
    def _check_template_syntax(cls, template: str) -> str:
        from hubmerge.specs.prompt_language import (
            check_template,  # jinja2 only for tasks that use it
        )

        return as_value_error(check_template, template) if template else template

    @field_validator("choices", "answer", "relevant")
    @classmethod
    def _check_expression_syntax(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        from hubmerge.specs.prompt_language import check_expression  # as above

        if isinstance(value, str) and value:
            return as_value_error(check_expression, value)
        return value

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(choices, tuple) and (len(choices) == 1 or not all(map(str.strip, choices))):
            raise ValueError("give two choices or more, none of them empty")
        return choices

    @model_validator(mode="after")
    def _check_keys_of_kind(self) -> TaskSpec:
        kind_keys = set().union(*_KEYS_BY_KIND.values())
        unused = sorted((self.model_fields_set & kind_keys) - _KEYS_BY_KIND[self.kind])
        if unused:
            kinds = [kind for kind, keys in _KEYS_BY_KIND.items() if unused[0] in keys]
            raise ValueError(f"`{unused[0]}` is for kind {' or '.join(kinds)}, not {self.kind}")
        required = () if self.format else _REQUIRED_KEYS.get(self.kind, ())
        missing = [key for key in required if not getattr(self, key)]
        if missing:
            raise ValueError(f"kind {self.kind} needs {', '.join(f'`{key}`' for key in missing)}")
        if self.data.range is not None and self.kind != "image":
            raise ValueError(f"`range` of the data is for kind image, not {self.kind}")
        carved = (self.splits.test, self.splits.validation)
        if not self.is_classification and any(getattr(s, "stratify", False) for s in carved):
            raise ValueError(f"`stratify` is for kind image or text, not {self.kind}")
        default = _METRIC_BY_KIND.get(self.kind, "accuracy")
        others = {"target": (*GENERATION_METRICS, LIKELIHOOD), "pairs": RETRIEVAL_METRICS}
        metrics = tuple(dict.fromkeys((default, *others.get(self.kind, ()))))
        if self.metric not in metrics:
            raise ValueError(f"kind {self.kind} is measured by {' or '.join(metrics)}")
        return self

    @model_validator(mode="after")
    def _check_format(self) -> TaskSpec:
        if self.format and (self.prompt or self.target):
            raise ValueError("give either `format`, or `prompt` and `target`")
        if self.data.columns and not self.format:
            raise ValueError("`data.columns` is for tasks with a `format`")
        if self.chat and self.format in (*_CHAT_FORMATS, "text"):
            raise ValueError(f"`chat` is for prompts, which `format: {self.format}` does not have")
        if self.join is not None and (self.chat or self.format in (*_CHAT_FORMATS, "text")):
            raise ValueError("`join` is for prompts that are not in a chat template")
        if self.format == "text" and self.metric in GENERATION_METRICS:
            raise ValueError(
                f"`format: text` has no answers: it is measured by token_accuracy or {LIKELIHOOD}"
            )
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> TaskSpec:
        if self.kind != "pairs":
            return self
        if bool(self.relevant) != (self.corpus is not None):
            raise ValueError("`relevant` gives ids of a `corpus`: give both, or none")
        if bool(self.positive) == bool(self.relevant):
            raise ValueError("kind pairs needs either `positive`, or `relevant` and a `corpus`")
        if self.corpus and self.corpus.split in self.splits.sources.values():
            raise ValueError(f"`corpus` and the rows are both the split {self.corpus.split!r}")
        return self

    @model_validator(mode="after")
    def _check_files(self) -> TaskSpec:
        used = {*self.splits.sources.values(), *([self.corpus.split] if self.corpus else [])}
        missing = sorted(used - set(self.data.files or ()))
        if self.data.files is not None and missing:
            raise ValueError(f"`data.files` has no files for split {missing[0]!r}")
        return self
