"""The card of an expert: curve, training settings, annealing and loading instructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from hubmerge.cards.card import BEGIN, END, CardInput, StepTag, render_card
from hubmerge.manifest import Manifest
from hubmerge.training_curve import ValidationPoint
from tests.cards.test_card import BASE, FILES, HOSTILE, front_matter_of, merge_manifest, score

LORA = {
    "tune": "lora", "rank": 8, "alpha": 32.0, "anneal": "trajectory", "steps": 16,
    "push_every": "2^k", "lr": 1e-4, "schedule": "cosine", "warmup": 0.1, "warmup_steps": None,
    "early_stop": "noise", "patience": 3, "stopped": "early", "batch": 32, "seed": 0,
    "augment": True, "future": "thing",
}  # fmt: skip
POINTS = (ValidationPoint(0, None, 0.5, 400, 0.0), ValidationPoint(8, 1.25, 0.75, 400, 1e-5))


def expert(training: Mapping[str, Any] | None = None, **changes: Any) -> Manifest:
    manifest = Manifest(
        kind="expert", base=BASE, step=8, last_step=16, task="cats@1", validation=POINTS,
        training=training or {}, command="hubmerge train", files=FILES,
        versions={"hubmerge": "0.1"},
    )  # fmt: skip
    return dataclasses.replace(manifest, **changes)


def card_of(manifest: Manifest) -> str:
    return render_card(CardInput(manifest, []))


def test_the_card_of_an_adapter_is_the_golden_one() -> None:
    card = card_of(expert(LORA, layout="peft"))
    metadata = front_matter_of(card)
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
    assert metadata["tags"] == [
        "hubmerge", "model-upcycling", "expert", "step-8", "lora", "arxiv:2506.14126",
    ]  # fmt: skip
    body = card.split("---\n", 2)[2]
    assert body == GOLDEN_ADAPTER


GOLDEN_ADAPTER = f"""{BEGIN}
# Expert for cats at step 8

Step 8 of 16, an adapter (LoRA) on o/base@bbbbbbbbbbbb: a snapshot of one run. The run was stopped \
early at step 8. Every pushed step is a tag of this repository: an early one often merges better \
than the last.

## Accuracy

| split | accuracy | n | s.e. |
|---|---:|---:|---:|

## Curve

![Validation accuracy and training loss against training steps on a log axis: accuracy goes from \
50.00 % at step 0 to 75.00 % at step 8, and is highest at step 8 with 75.00 %.](curve.png)

Validation accuracy and training loss up to this step; every point is in
[curve.csv](curve.csv).

| step | loss | accuracy | learning rate |
|---:|---:|---:|---:|
| 0 | - | 50.00 | 0.00e+00 |
| 8 | 1.2500 | 75.00 | 1.00e-05 |

## How it was made

- base: o/base@bbbbbbbbbbbb, commit {"b" * 40}
- tuned: LoRA, rank 8, alpha 32
- annealing: trajectory, a snapshot of one run
- steps: 16, pushed at 2^k
- learning rate: peak 0.0001, schedule cosine, warm-up share 0.1
- early stopping: noise, patience 3, stopped at this step
- updates: batch 32
- data: augmented yes
- seed: 0
- future: thing
- versions: hubmerge 0.1
- weights and files: SHA-256 of each in hubmerge.json

Reproduce it with

```
hubmerge train
```

Load it with peft alone: open the base, o/base@bbbbbbbbbbbb, commit {"b" * 40}, with \
`CLIPModel.from_pretrained` (or the class that its config.json names), then call \
`PeftModel.from_pretrained(base, REPO, revision=TAG)`.

## Licence

- Unknown: not every source names one. Ask its authors before you rely on it.
- o/base: unknown

## Limits

An expert for one task; on other tasks it may be worse than its base.

## Citation

"From Memorization to Parameter Interference: How Overtraining Experts Harms Model Merging",
ICML 2026, arXiv [2506.14126](https://arxiv.org/abs/2506.14126); its first version was called "Less
is More: Undertraining Experts Improves Model Upcycling". Made with hubmerge 0.1.
{END}
"""


def test_the_steps_of_the_repository_and_the_merges_made_of_it() -> None:
    steps = (StepTag(4, "step4", "a" * 40, 0.5), StepTag(8, "step8|`", "b" * 40))
    names = tuple(f"o/merge-{number:02}" for number in range(22))
    card = render_card(CardInput(expert(), [], steps=steps, used_by=names))
    assert "| 4 | step4 | `aaaaaaaaaaaa` | 50.00 |" in card
    assert "| 8 | step8\\|\\` | `bbbbbbbbbbbb` | - |" in card
    assert "- o/merge-00\n" in card
    assert "- o/merge-19\n- and 2 more\n" in card
    assert "o/merge-20" not in card
    assert "## Steps" not in card_of(expert())
    assert "## Merges" not in card_of(expert())


def test_an_adapter_of_an_unknown_kind() -> None:
    card = card_of(expert(layout="peft"))
    assert "Step 8 of 16, an adapter on o/base@bbbbbbbbbbbb. Every" in card
    assert "lora" in front_matter_of(card)["tags"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("anneal", "words"),
    [
        ("trajectory", "o/base@bbbbbbbbbbbb: a snapshot of one run."),
        ("independent", ": a run of its own, annealed to this step."),
        ("branch", ": a constant trunk, annealed by a short cool-down before this step."),
        ("of a later version", "o/base@bbbbbbbbbbbb. Every"),
    ],
)
def test_the_headline_describes_the_annealing(anneal: str, words: str) -> None:
    headline = card_of(expert({"anneal": anneal})).split("\n## ")[0]
    assert words in headline
    assert "stopped" not in headline


def test_full_fine_tuning_has_no_adapter_settings() -> None:
    card = card_of(expert({**LORA, "tune": "full"}))
    assert "- tuned: all weights\n" in card
    assert "rank" not in card
    assert front_matter_of(card)["base_model_relation"] == "finetune"
    assert "lora" not in front_matter_of(card)["tags"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kind", "pipeline", "task", "call"),
    [
        ("image", "zero-shot-image-classification", "image-classification", "CLIPModel"),
        ("text", "text-classification", "text-classification", "AutoModel"),
        ("rank", "text-generation", "text-generation", "AutoModelForSeq2SeqLM"),
        ("target", "text-generation", "text-generation", "AutoModelForSeq2SeqLM"),
    ],
)
def test_the_task_kind_decides_the_pipeline_and_the_loader(
    kind: str, pipeline: str, task: str, call: str
) -> None:
    manifest = expert(task_kind=kind)
    card = render_card(CardInput(manifest, [score(manifest.digest, "cats", 0.5)]))
    metadata = front_matter_of(card)
    assert metadata["pipeline_tag"] == pipeline
    assert metadata["model-index"][0]["results"][0]["task"]["type"] == task  # type: ignore[index]
    assert f"`{call}.from_pretrained(REPO, revision=TAG)`" in card


def test_an_unknown_task_kind_has_no_pipeline() -> None:
    manifest = expert(task_kind="poetry")
    metadata = front_matter_of(
        render_card(CardInput(manifest, [score(manifest.digest, "cats", 0.5)]))
    )
    assert not {"pipeline_tag", "model-index"} & metadata.keys()


def test_a_long_curve_is_thinned_in_the_table() -> None:
    points = tuple(ValidationPoint(step, 1.0, 0.5, 400, 1e-5) for step in range(0, 2001, 5))
    card = card_of(expert(validation=points))
    rows = [line for line in card.splitlines() if line.endswith("| 1.0000 | 50.00 | 1.00e-05 |")]
    assert [row.split()[1] for row in rows] == [
        "0", "5", "10", "20", "35", "65", "130", "260", "515", "1025", "2000",
    ]  # fmt: skip
    assert "the first point of each doubling and the last" in card


def test_without_a_curve_there_is_no_picture() -> None:
    card = card_of(expert(validation=()))
    assert "curve." not in card
    assert "## Curve" not in card


def test_a_merge_lists_the_notes_on_the_experts() -> None:
    noted = dataclasses.replace(
        merge_manifest(64), training={"notes": ["Modes differ.", "<b>Mixed</b>."]}
    )
    card = card_of(noted)
    limits = card.split("## Limits")[1].split("## Citation")[0]
    assert limits.rstrip().endswith("misuse.\nModes differ.\n&lt;b&gt;Mixed&lt;/b&gt;.")
    assert "notes" not in card
    assert "curve." not in card
    assert card_of(dataclasses.replace(merge_manifest(64), training={"notes": 7})) == card_of(
        merge_manifest(64)
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_settings_are_text(text: str) -> None:
    training = {
        "tune": text, "anneal": text, "stopped": text, text: text, "rank": {text: [text]},
        "notes": [text],
    }  # fmt: skip
    bad = dataclasses.replace(BASE, label=f"{text}@x", sha=text)
    for layout in ("peft", text):
        manifest = expert(training, layout=layout, task_kind=text, base=bad, run=text)
        noted = dataclasses.replace(merge_manifest(64), training=training, layout=layout, base=bad)
        for card in (card_of(manifest), card_of(noted)):
            body = card.split(BEGIN)[1]
            assert card.count(BEGIN) == card.count(END) == 1
            assert isinstance(front_matter_of(card), dict)
            assert "<script" not in body
            assert "[click]" not in body
            assert "\x1b" not in card
            assert "**bold**" not in body


@pytest.mark.parametrize("manifest", [expert(), merge_manifest(64)])
def test_an_image_model_with_trained_heads_is_not_zero_shot(manifest: Manifest) -> None:
    files = {**FILES, "head-cats.safetensors": "e" * 64}
    card = card_of(dataclasses.replace(manifest, layout="transformers", files=files))
    assert front_matter_of(card)["pipeline_tag"] == "image-classification"
    assert "`AutoModel.from_pretrained(REPO, revision=TAG)`. Trained heads" in card
    assert "CLIPModel" not in card


@pytest.mark.parametrize(
    ("metric", "name"), [("accuracy", "Accuracy"), ("token_accuracy", "Token accuracy")]
)
def test_the_metric_is_named(metric: str, name: str) -> None:
    manifest = expert(task_kind="target")
    measured = dataclasses.replace(score(manifest.digest, "cats", 0.5), metric=metric)
    metadata = front_matter_of(render_card(CardInput(manifest, [measured])))
    metrics = metadata["model-index"][0]["results"][0]["metrics"]  # type: ignore[index]
    assert metrics == [{"type": metric, "value": 0.5, "name": name}]


def test_another_version_of_the_task_is_a_separate_row() -> None:
    manifest = expert()
    log = [score(manifest.digest, "cats", 0.5)]
    log.append(dataclasses.replace(log[0], task="cats@2", value=0.75))
    card = render_card(CardInput(manifest, log))
    assert "| cats@1, test | 50.00 | 1000 |" in card
    assert "| cats@2, test | 75.00 | 1000 |" in card


@pytest.mark.parametrize(("evaluations", "line"), [
    ({"8": {"loss": 2.5}, "16": {"loss": 1.25, "accuracy": 0.5}},
     "2, the last at step 16: loss 1.25, accuracy 0.5"),
    ({"x": 3}, "evaluations: 1"),
    ({}, "evaluations: 0"),
])  # fmt: skip
def test_evaluations_of_a_loop_are_one_line(evaluations: Mapping[str, Any], line: str) -> None:
    assert line in card_of(expert({"evaluations": evaluations}))
