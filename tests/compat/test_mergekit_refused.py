"""What a configuration of mergekit cannot have is refused by name, before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubmerge.errors import HubmergeError, UsageError
from hubmerge.flows.merge import MergeRequest, prepare_merge
from hubmerge.hub.client import Hub
from hubmerge.mergekit.config import read_mergekit_config
from hubmerge.mergekit.merge import MergekitMerge
from hubmerge.mergekit.translation import translate_config
from tests.compat.mergekit_models import write_models

TWO = "models: [{model: o/a, parameters: {weight: 1}}, {model: o/b, parameters: {weight: 1}}]\n"
TIES = f"merge_method: ties\nbase_model: o/base\n{TWO}"
LINEAR = f"merge_method: linear\n{TWO}"


def translate(text: str, folder: Path) -> MergekitMerge:
    path = folder / "config.yml"
    path.write_text(text)
    return translate_config(read_mergekit_config(path))


@pytest.mark.parametrize(("text", "problem"), [
    # Keys and values
    (TIES + "dtipe: float16", "unknown key 'dtipe'; did you mean 'dtype'?"),
    (TIES + "normalize: true", "normalize is a parameter: write it below `parameters`"),
    (TIES.replace("parameters", "parametrs", 1), "unknown key 'models.0.parametrs'; did you mean"),
    (TIES + "parameters: {densty: 0.5}", "densty: unknown parameter, which mergekit ignores. Did "
     "you mean density?"),
    (TIES + "parameters: {density: [{pattern: mlp, value: 1}]}", "did you mean 'filter'?"),
    (TIES + "parameters: {density: [{filter: mlp, value: 1}, 0.5]}", "mixes numbers and filters"),
    (TIES + "parameters: {density: [{filter: mlp}]}", "a filter without a value"),
    (TIES + "parameters: {density: []}", "is an empty list"),
    (TIES + "parameters: {density: much}", "'much' is not a number"),
    (TIES + "parameters: {density: 1.5}", "density=1.5 must be at most 1"),
    (TIES + "parameters: {normalize: 0.5}", "0.5 is neither true nor false"),
    (TIES + "parameters: {density: true}", "true is not a number"),
    (TIES + "dtype: int64", "Unknown dtype 'int64'"),
    (TIES + "parameters: {density: 1}\nparameters: {density: 0.5}", "has 'parameters' twice"),
    (f"base: &b o/base\n{TIES}".replace("base_model: o/base", "base_model: *b"), "YAML aliases"),
    # Models
    (TIES.replace("o/base", "./base@main"), "./base is a folder, which has no revisions"),
    (TIES.replace("o/base", "o/base+o/x"), "o/base+o/x has an adapter: merge it first"),
    (TIES.replace("o/a", "o/other+o/x"), "an adapter is merged with its own base, and here"),
    (TIES.replace("o/a", "o/base+o/x+o/y"), "has two adapters"),
    (TIES.replace("o/a", "o/b"), "o/b is in it twice"),
    (TIES.replace("base_model: o/base\n", ""), "ties needs a base_model"),
    (TIES.replace("o/base", "{model: {path: o/base}, override_architecture: X}"),
     "override_architecture is not supported"),
    (TIES.replace("o/base", "base"), "'base' is not a repository id"),
    (TIES.replace(", parameters: {weight: 1}", "", 1), "o/a: weight is missing"),
    ("merge_method: slerp\nbase_model: o/a\nmodels: [{model: o/b, parameters: {t: 0.5}}]",
     "parameters: t is missing"),
    (f"merge_method: slerp\nbase_model: o/base\n{TWO}parameters: {{t: 0.5}}",
     "slerp takes exactly 1 expert, and there are 2"),
    (f"merge_method: passthrough\nbase_model: o/c\n{TWO.replace('weight', 'scale')}",
     "mergekit counts the base_model as one of the models"),
    ("merge_method: model_stock\nbase_model: o/b\nmodels: [{model: o/a}]",
     "model_stock takes at least 2 experts"),
    (LINEAR + "base_model: o/c", "o/c: weight is missing"),
    # What is not offered
    (TIES.replace("ties", "arcee_fusion"), "mergekit's arcee_fusion is not offered"),
    (TIES.replace("ties", "nearswap"), "mergekit's nearswap is not offered"),
    (TIES.replace("ties", "dare_tis"), "Unknown merge method of mergekit 'dare_tis'"),
    (TIES + "chat_template: auto", "chat_template: is not supported"),
    (TIES + "modules: {text_decoder: {models: []}}", "modules: is not supported"),
    (TIES + "tokenizer: {source: union, tokens: {<s>: {source: o/a}}}", "tokenizer.tokens: is not"),
    (TIES + "tokenizer: {pad_to_multiple_of: 8}", "tokenizer.pad_to_multiple_of: is not supported"),
    (TIES + "tokenizer_source: o/a", "tokenizer_source: o/a is not the base_model"),
    (TIES + "tokenizer_source: base\ntokenizer: {source: base}", "give either tokenizer or"),
    (LINEAR + "tokenizer_source: union", "tokenizer_source: name a base_model"),
    ("merge_method: passthrough\nbase_model: o/a\ntokenizer_source: union\nslices: [{sources: "
     "[{model: o/a, layer_range: [0, 8]}]}, {sources: [{model: o/b, layer_range: [4, 9]}]}]",
     "tokenizer_source: union needs the same models in all slices"),
    (f"{TIES}---\n{LINEAR}", "has several documents: merges of merges are not supported"),
    (TIES + "name: first", "name: merges of merges are not supported"),
    (TIES + "out_path: ./x", "out_path: merges of merges are not supported"),
    ("base_model: o/a\ngate_mode: hidden\nexperts: [{source_model: o/b}]",
     "see `hubmerge moerge`"),
    ("genome: {models: [o/a]}\ntasks: []", "genome: mergekit-evolve's searches"),
    (f"merge_method: nuslerp\n{TWO}parameters: {{nuslerp_row_wise: true}}",
     "nuslerp_row_wise: True is not supported"),
    (f"merge_method: multislerp\n{TWO}parameters: {{normalize_weights: false}}",
     "normalize_weights: False is not supported"),
    (f"merge_method: multislerp\n{TWO}parameters: {{eps: 0.1}}", "eps: 0.1 is not supported"),
    (TIES.replace("ties", "dare_linear") + "parameters: {normalize: true}",
     "normalize: true is not supported with dare_linear"),
    (TIES.replace("ties", "task_arithmetic") + "parameters: {normalize: true, lambda: 0.5}",
     "normalize: true is not supported with task_arithmetic and a lambda"),
    (TIES + "parameters: {rescale: [{filter: mlp, value: true}, {value: false}]}",
     "rescale must be the same for all tensors"),
    # Slices
    (TIES + "slices: [{sources: [{model: o/a, layer_range: [0, 2]}]}]", "either models or slices"),
    ("merge_method: linear", "give either models or slices"),
    ("merge_method: passthrough\nslices: [{sources: [{model: o/a, layer_range: [2, 2]}]}]",
     "[2, 2] has no layer in it"),
    ("merge_method: passthrough\nslices: [{sources: [{model: o/a}]}]", "layer_range is missing"),
    ("merge_method: passthrough\nslices: [{base_model: o/b, sources: [{model: o/a, layer_range: "
     "[0, 2]}]}]", "a slice has no base of its own"),
    ("merge_method: passthrough\nslices: [{residual_weight: 0.1, sources: [{model: o/a, "
     "layer_range: [0, 2]}]}]", "residual_weight: mergekit ignores it"),
    ("merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: o/a, layer_range: "
     "[0, 8]}, {model: o/a, layer_range: [8, 16]}]}]", "o/a is in it twice"),
    ("merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: o/a, layer_range: "
     "[0, 8]}, {model: o/b, layer_range: [0, 9]}]}]", "its sources have 8 and 9 layers"),
    ("merge_method: slerp\nbase_model: o/c\nparameters: {t: 1}\nslices: [{sources: [{model: o/a, "
     "layer_range: [0, 8]}]}]", "base_model o/c is not one of its sources"),
    ("merge_method: karcher\nslices: [{sources: [{model: o/a, layer_range: [0, 8]}, {model: o/b, "
     "layer_range: [0, 8]}]}, {sources: [{model: o/a, layer_range: [8, 9]}]}]",
     "karcher needs the same models in all of them"),
    ("merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: o/a, layer_range: "
     "[0, 8]}]}, {sources: [{model: o/a, layer_range: [8, 9]}, {model: o/b, layer_range: [8, 9]}"
     "]}]", "the first has 1 sources and the last 2"),
])  # fmt: skip
def test_it_is_refused_before_anything_is_opened(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        translate(text, tmp_path)
    assert problem in f"{caught.value.message} {caught.value.hint}"


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = TIES + (
        "dtipe: float16\nnormalize: true\nchat_template: auto\ndtype: x\n"
        "parameters: {densty: 1, density: 2}\ntokenizer_source: o/a"
    )
    with pytest.raises(UsageError) as caught:
        translate(text, tmp_path)
    assert len(caught.value.problems) == 7


BASE = "merge_method: task_arithmetic\nbase_model: ./base\nmodels: [{model: ./alpha}]\n"


@pytest.mark.parametrize(("text", "problem"), [
    (BASE + "parameters: {weight: [{filter: self_atn, value: 1}, {value: 0}]}",
     "weight: no tensor has 'self_atn' in its name."),
    (BASE + "parameters: {weight: [{filter: mlp, value: 1}]}",
     "weight of ./alpha has no value for lm_head.weight."),
    # No text is in the same names and longer than model.layers.1.
    (BASE + "parameters: {weight: [{filter: mlp, value: 1}, {filter: model.layers.1., value: 2}, "
     "{value: 0}]}", "weight: its filters cannot be kept for model.layers.1.mlp.down_proj.weight"),
    ("merge_method: linear\nparameters: {normalize: false, weight: 0.4}\nmodels: [{model: ./alpha},"
     "{model: ./beta}]", "those of lm_head.weight add up to 0.8"),
    ("merge_method: della\nbase_model: ./base\nmodels: [{model: ./alpha}, {model: ./beta}]\n"
     "parameters: {weight: 1, epsilon: 0.4, density: 0.3}", "density - epsilon must be above 0"),
    ("merge_method: passthrough\nslices: [{sources: [{model: ./alpha, layer_range: [2, 5]}]}]",
     "slices.0: ./alpha has 4 layers, and layer_range is [2, 5]."),
    ("merge_method: passthrough\nslices: [{sources: [{model: ./base+./adapter-one, "
     "layer_range: [0, 3]}]}]", "layers can only be taken from whole models"),
    ("merge_method: linear\nparameters: {weight: [{filter: 'layers.3.', value: 1}, {value: 2}]}\n"
     "slices: [{sources: [{model: ./alpha, layer_range: [1, 4]}, {model: ./beta, layer_range: "
     "[1, 4]}]}]", "weight: its filters cannot be kept for model.layers.2"),
    ("merge_method: linear\nmodels: [{model: ./alpha}, {model: ./beta}]\nparameters: "
     "{weight: [{filter: mlp, value: 0}, {value: 1}]}", "are not valid for average"),
    ("merge_method: slerp\nbase_model: ./base\nmodels: [{model: ./tall}]\nparameters: {t: 1}",
     "that the base does not have"),
])  # fmt: skip
def test_it_is_refused_when_the_tensors_are_known(
    text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path / "models")
    monkeypatch.chdir(tmp_path / "models")
    hub = Hub("http://127.0.0.1:9", "", tmp_path / "cache", "no Hub", deadline_s=1.0)
    with pytest.raises(HubmergeError) as caught:
        prepare_merge(hub, MergeRequest(config=translate(text, tmp_path)), tmp_path / "merges")
    assert problem in caught.value.message
    assert not (tmp_path / "merges").exists()


@pytest.mark.parametrize(("text", "note"), [
    (TIES + "parameters: {int8_mask: true}", "int8_mask has no effect here"),
    (LINEAR + "parameters: {density: 0.5}", "density has no effect with linear, as in mergekit."),
    (TIES.replace("o/a", "o/base"), "weight has no effect on the base, as in mergekit."),
    (TIES.replace("weight: 1", "weight: 1, lambda: 2", 1), "lambda has no effect on one model"),
    (TIES.replace("ties", "task_arithmetic") + "parameters: {rescale: true}", "rescale has no"),
    (TIES + "dtype: bfloat16", "dtype: bfloat16: values are computed in float32 and rounded once"),
    (LINEAR + "base_model: o/c\nparameters: {weight: 1}", "takes the base_model as one of the"),
])  # fmt: skip
def test_what_has_no_effect_is_a_note(text: str, note: str, tmp_path: Path) -> None:
    assert note in " ".join(translate(text, tmp_path).notes)


def test_a_format_is_that_of_the_result(tmp_path: Path) -> None:
    both = translate(TIES + "dtype: torch.float32\nout_dtype: bfloat16", tmp_path)
    assert (both.dtype, both.notes) == ("BF16", ())
    assert translate(TIES, tmp_path).dtype is None


def test_tokenizers(tmp_path: Path) -> None:
    for text, expected in (
        ("", None), ("tokenizer_source: base", "base"), ("tokenizer_source: o/base", "base"),
        ("tokenizer: {source: union}", "union"), ("tokenizer_source: union", "union"),
    ):  # fmt: skip
        assert translate(TIES + text, tmp_path).vocabulary == expected
