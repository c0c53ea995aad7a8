"""Write the descriptions of base and expert in tests/weights/pairs: names, dtypes, shapes, config.

    python scripts/header_pairs.py

Each model is built by transformers without memory for its weights, from the configuration of a
published model (with fewer layers if it is large), and named as its file is. The right plan follows
from how the pair was made: two tensors belong together if transformers loads them into the same
place. Nothing of hubmerge is used.
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

FOLDER = Path(__file__).parents[1] / "tests" / "weights" / "pairs"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
Spec = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """The tensors of a file by name, and for each the place that it is loaded into, if any."""

    config: dict[str, Any]
    tensors: dict[str, Spec]
    places: dict[str, str] = field(default_factory=dict)

    def renamed(self, rename: Callable[[str], str]) -> Model:
        return replace(
            self,
            tensors={rename(name): spec for name, spec in self.tensors.items()},
            places={rename(name): place for name, place in self.places.items()},
        )

    def plus(self, **tensors: Spec) -> Model:
        """With tensors that no module loads; `__` in a name is a dot."""
        more = {name.replace("__", "."): spec for name, spec in tensors.items()}
        return replace(self, tensors={**self.tensors, **more})

    def with_copy(self, name: str, original: str) -> Model:
        """With a tied tensor stored again under its own name."""
        return replace(
            self,
            tensors={**self.tensors, name: self.tensors[original]},
            places={**self.places, name: f"copy of {self.places[original]}"},
        )

    def without(self, *patterns: str) -> Model:
        def keep(name: str) -> bool:
            return not any(re.search(pattern, name) for pattern in patterns)

        return replace(
            self,
            tensors={name: spec for name, spec in self.tensors.items() if keep(name)},
            places={name: place for name, place in self.places.items() if keep(name)},
        )


def build(
    class_name: str, body: str = "", dtype: torch.dtype = torch.bfloat16, **config: Any
) -> Model:
    """A model as save_pretrained writes it; places of its body begin with `body`."""
    model_class = getattr(transformers, class_name)
    settings = model_class.config_class(**config)
    with torch.device("meta"):
        model = model_class(settings).to(dtype)
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        seen.setdefault(id(tensor), name)
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items()
             if seen[id(tensor)] == name}  # fmt: skip
    files = revert_weight_conversion(model, dict(state))
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    tensors, places = {}, {}
    for name, tensor in files.items():
        tensors[name] = (DTYPES[tensor.dtype], tuple(tensor.shape))
        memory = seen.get(id(tensor), name)
        inside = memory.startswith(prefix) and prefix
        places[name] = body + memory.removeprefix(prefix) if inside or not prefix else memory
    fields = settings.to_dict() | {"architectures": [class_name]}
    return Model(json.loads(json.dumps(fields, default=str)), tensors, places)


def plan(base: Model, expert: Model) -> dict[str, Any]:
    """Which tensors of the pair are one, which the base keeps, which the expert has for itself."""
    by_place = {place: name for name, place in expert.places.items()}
    names = {}
    for name, place in base.places.items():
        original = place.removeprefix("copy of ")
        if original in by_place and expert.tensors[by_place[original]][1] == base.tensors[name][1]:
            names[name] = by_place[original]
    used = set(names.values())
    return {
        "names": compress(names),
        "kept": sorted(compress({name: 0 for name in base.tensors if name not in names})),
        "left_out": sorted(compress({name: 0 for name in expert.tensors if name not in used})),
    }


def compress(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Names that differ in numbers alone become one, with ranges: layers.{0..31}.norm.weight."""
    groups: dict[tuple[str, str], dict[tuple[int, ...], Any]] = {}
    for name, value in entries.items():
        numbers = tuple(map(int, re.findall(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", name)))
        text = json.dumps(_template(value) if isinstance(value, str) else value)
        groups.setdefault((_template(name), text), {})[numbers] = (name, value)
    packed: dict[str, Any] = {}
    for (template, text), members in groups.items():
        ranges = [sorted(set(column)) for column in zip(*members, strict=True)]
        is_product = all(r == list(range(r[0], r[-1] + 1)) for r in ranges) and set(
            itertools.product(*ranges)
        ) == set(members)
        if not ranges or not is_product or len(members) == 1:
            packed |= dict(members.values())
            continue
        texts = [f"{{{r[0]}..{r[-1]}}}" for r in ranges]
        value = json.loads(text)
        packed[_fill(template, texts)] = _fill(value, texts) if isinstance(value, str) else value
    return packed


def _template(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "#", name)


def _fill(template: str, texts: list[str]) -> str:
    parts = iter(texts)
    return re.sub("#", lambda _: next(parts), template)


def describe(model: Model) -> dict[str, Any]:
    tensors = {name: [dtype, list(shape)] for name, (dtype, shape) in model.tensors.items()}
    return {"config": small_config(model.config), "tensors": compress(tensors)}


def small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the names: class, type, ties, vocabulary, and the same of its parts."""
    keys = ("architectures", "model_type", "tie_word_embeddings", "vocab_size", "torch_dtype")
    parts = ("text_config", "vision_config")
    return {key: config[key] for key in keys if config.get(key) is not None} | {
        part: small_config(config[part]) for part in parts if isinstance(config.get(part), dict)
    }


@dataclass(frozen=True)
class Pair:
    name: str
    note: str
    base: Model
    expert: Model
    options: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": True,
}  # fmt: skip
TINYLLAMA = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip
QWEN = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
BERT = {"vocab_size": 30522}
CLIP_VISION = {"hidden_size": 768, "patch_size": 32, "projection_dim": 512}


def drop(prefix: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(prefix)


def add(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def swap(old: str, new: str) -> Callable[[str], str]:
    return lambda name: re.sub(old, new, name)


def layers(template: str, count: int, spec: Spec) -> dict[str, Spec]:
    return {template.format(number).replace(".", "__"): spec for number in range(count)}


def decoders() -> Iterator[Pair]:
    llama, tiny, qwen = (
        build("LlamaForCausalLM", **LLAMA_1B),
        build("LlamaForCausalLM", **TINYLLAMA),
        build("Qwen2ForCausalLM", **QWEN),
    )
    head = "lm_head.weight", "model.embed_tokens.weight"
    yield Pair("llama-1b", "Llama-3.2-1B: tied, no head on either side", llama, llama)
    yield Pair("llama-1b-head", "an equal head stored by the expert", llama, llama.with_copy(*head))
    yield Pair(
        "llama-1b-base-head", "an equal head stored by the base", llama.with_copy(*head), llama
    )
    yield Pair("llama-inner", "saved from LlamaModel", llama, llama.renamed(drop("model.")))
    yield Pair("llama-compiled", "torch.compile", llama, llama.renamed(add("_orig_mod.")))
    yield Pair("llama-ddp", "distributed and compiled", llama,
               llama.renamed(add("module._orig_mod.")))  # fmt: skip
    frequencies = layers("model.layers.{}.self_attn.rotary_emb.inv_freq", 22, ("F32", (32,)))
    yield Pair("tinyllama", "TinyLlama: untied", tiny, tiny)
    yield Pair("tinyllama-inv-freq", "an old save with frequencies", tiny.plus(**frequencies), tiny)
    yield Pair("tinyllama-inv-freq-expert", "the other way round", tiny, tiny.plus(**frequencies))
    yield Pair("tinyllama-no-head", "LlamaModel of an untied base: its head stays", tiny,
               build("LlamaModel", **TINYLLAMA))  # fmt: skip
    score = build("LlamaForSequenceClassification", **TINYLLAMA, num_labels=3)
    yield Pair("llama-classifier", "a classifier", tiny, score, refused=("score.weight", "--heads"))
    yield Pair("llama-classifier-kept", "its head beside", tiny, score, ("--heads", "keep"))
    more = build("LlamaForCausalLM", **{**LLAMA_1B, "vocab_size": 128258})
    yield Pair("llama-tokens", "two more tokens", llama, more,
               refused=("model.embed_tokens.weight", "--vocabulary"))  # fmt: skip
    yield Pair("qwen2.5-0.5b", "Qwen2.5-0.5B, with a head", qwen, qwen.with_copy(*head))
    cut = build("Qwen2ForCausalLM", **{**QWEN, "vocab_size": 151665})
    yield Pair("qwen2.5-unpadded", "the padding of the vocabulary cut off", qwen, cut,
               refused=("model.embed_tokens.weight", "--vocabulary"))  # fmt: skip
    qwen3 = build("Qwen3ForCausalLM", **{**QWEN, "hidden_size": 1024, "num_attention_heads": 16,
                                         "num_key_value_heads": 8, "head_dim": 128})  # fmt: skip
    yield Pair("qwen3-0.6b", "Qwen3: norms of queries and keys", qwen3, qwen3)
    mistral = build("MistralForCausalLM", num_hidden_layers=4)
    yield Pair("mistral-7b", "Mistral-7B, 4 layers, module. of deepspeed", mistral,
               mistral.renamed(add("module.")))  # fmt: skip
    gemma = build("Gemma2ForCausalLM", num_hidden_layers=4)
    yield Pair("gemma-2", "Gemma 2, 4 layers, tied", gemma, gemma.with_copy(*head))
    phi = build("Phi3ForCausalLM", num_hidden_layers=4, vocab_size=32064, pad_token_id=0)
    yield Pair("phi-3", "Phi-3, 4 layers, fused projections", phi, phi)
    olmo = build("OlmoForCausalLM", hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
                 num_attention_heads=16, vocab_size=50304)  # fmt: skip
    yield Pair("olmo-1b", "OLMo 1B, 4 layers", olmo, olmo.renamed(drop("model.")))
    falcon = build("FalconForCausalLM", num_hidden_layers=2, tie_word_embeddings=True)
    yield Pair("falcon", "Falcon, 2 layers, tied", falcon, falcon.with_copy(
        "lm_head.weight", "transformer.word_embeddings.weight"))  # fmt: skip
    bloom = build("BloomForCausalLM", hidden_size=1024, n_layer=24, n_head=16, vocab_size=250880)
    yield Pair("bloom-560m", "BLOOM as its base was published, without prefix",
               bloom.renamed(drop("transformer.")), bloom)  # fmt: skip
    opt = build("OPTForCausalLM", hidden_size=768, num_hidden_layers=12, ffn_dim=3072,
                num_attention_heads=12, word_embed_proj_dim=768)  # fmt: skip
    yield Pair("opt-125m", "OPT: decoder. in the base, model.decoder. in the expert",
               opt.renamed(drop("model.")), opt)  # fmt: skip
    gpt2 = build("GPT2LMHeadModel", dtype=torch.float32)
    masks = layers("h.{}.attn.bias", 12, ("F32", (1, 1, 1024, 1024)))
    old = gpt2.renamed(drop("transformer.")).plus(**masks)
    yield Pair("gpt2", "GPT-2 as it was published: no prefix, masks", old, gpt2)
    yield Pair("gpt2-old-expert", "the other way round", gpt2, old)
    classified = build("GPT2ForSequenceClassification", dtype=torch.float32, num_labels=4)
    yield Pair("gpt2-classifier", "experts of a GLUE task", old, classified,
               refused=("score.weight", "--heads"))  # fmt: skip
    yield Pair("gpt2-classifier-kept", "their heads beside", old, classified, ("--heads", "keep"))
    neox = build("GPTNeoXForCausalLM", hidden_size=1024, num_hidden_layers=24,
                 intermediate_size=4096, num_attention_heads=16, vocab_size=50304)  # fmt: skip
    buffers = (
        layers("gpt_neox.layers.{}.attention.bias", 24, ("F32", (1, 1, 2048, 2048)))
        | layers("gpt_neox.layers.{}.attention.masked_bias", 24, ("F32", ()))
        | layers("gpt_neox.layers.{}.attention.rotary_emb.inv_freq", 24, ("F32", (8,)))
    )
    yield Pair("pythia-410m", "Pythia with the buffers of old versions", neox.plus(**buffers), neox)
    yield Pair("pythia-410m-memory", "named as in memory", neox,
               neox.renamed(swap("^embed_out", "lm_head")))  # fmt: skip


def encoders() -> Iterator[Pair]:
    bert = build("BertForMaskedLM", dtype=torch.float32, **BERT)
    classifier = build("BertForSequenceClassification", dtype=torch.float32, **BERT)
    norm = swap("LayerNorm.weight", "LayerNorm.gamma"), swap("LayerNorm.bias", "LayerNorm.beta")
    old = bert.renamed(norm[0]).renamed(norm[1])
    yield Pair("bert-gamma", "old names of norms", old, bert)
    yield Pair("bert-decoder", "the decoder of masked words stored twice",
               bert.with_copy("cls.predictions.decoder.bias", "cls.predictions.bias").with_copy(
                   "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
               ), bert)  # fmt: skip
    yield Pair("bert-classifier", "a classifier with a pooler of its own", old, classifier,
               refused=("classifier.", "--heads"))  # fmt: skip
    yield Pair("bert-classifier-kept", "its head beside", old, classifier, ("--heads", "keep"))
    yield Pair("bert-classifier-dropped", "its head left out", old, classifier, ("--heads", "drop"))
    yield Pair("bert-body", "BertModel over BertForMaskedLM", bert,
               build("BertModel", dtype=torch.float32, **BERT, add_pooling_layer=False)
               .without("pooler").plus(embeddings__position_ids=("I64", (1, 512))))  # fmt: skip
    roberta = build("RobertaForMaskedLM", dtype=torch.float32, vocab_size=50265,
                    max_position_embeddings=514, type_vocab_size=1)  # fmt: skip
    tagged = build("RobertaForTokenClassification", dtype=torch.float32, vocab_size=50265,
                   max_position_embeddings=514, type_vocab_size=1, num_labels=9)  # fmt: skip
    yield Pair("roberta-tagger", "named entities", roberta, tagged, ("--heads", "keep"))
    deberta = build("DebertaV2ForSequenceClassification", dtype=torch.float32, num_labels=2)
    yield Pair("deberta-classes", "other classes over a classifier", deberta,
               build("DebertaV2ForSequenceClassification", dtype=torch.float32, num_labels=3),
               refused=("classifier.", "--heads"))  # fmt: skip
    distil = build("DistilBertForMaskedLM", dtype=torch.float32)
    yield Pair("distilbert-classifier", "a pre_classifier", distil,
               build("DistilBertForSequenceClassification", dtype=torch.float32),
               ("--heads", "keep"))  # fmt: skip
    electra = build("ElectraForPreTraining", dtype=torch.float32)
    yield Pair(
        "electra-answers",
        "answers to questions",
        electra,
        build("ElectraForQuestionAnswering", dtype=torch.float32),
        ("--heads", "keep"),
    )
    mpnet = build("MPNetModel", dtype=torch.float32)
    yield Pair("mpnet-sentences", "a sentence encoder with positions stored",
               mpnet.plus(embeddings__position_ids=("I64", (1, 514))), mpnet)  # fmt: skip
    t5 = build("T5ForConditionalGeneration")
    copies = t5.with_copy("encoder.embed_tokens.weight", "shared.weight").with_copy(
        "decoder.embed_tokens.weight", "shared.weight"
    )
    yield Pair("t5-copies", "T5 as it was published, with three embeddings", copies, t5)
    yield Pair("t5-copies-expert", "the other way round", t5, copies)
    flan = build("T5ForConditionalGeneration", tie_word_embeddings=False)
    yield Pair("flan-t5", "Flan-T5: a head of its own", flan, flan)


def vision() -> Iterator[Pair]:
    clip = build("CLIPModel", dtype=torch.float32, vision_config=CLIP_VISION, projection_dim=512)
    published = clip.plus(
        text_model__embeddings__position_ids=("I64", (1, 77)),
        vision_model__embeddings__position_ids=("I64", (1, 50)),
    )
    tower = build("CLIPVisionModel", body="vision_model.", dtype=torch.float32, **CLIP_VISION)
    old_tower = tower.renamed(lambda n: n if n.startswith("vision_model.") else f"vision_model.{n}")
    yield Pair("clip", "CLIP as it was published, with positions", published, clip)
    yield Pair(
        "clip-tower", "a vision tower as pools of CLIP experts have it", published, old_tower
    )
    yield Pair("clip-tower-memory", "a vision tower without its prefix", published,
               old_tower.renamed(drop("vision_model.")))  # fmt: skip
    projected = build(
        "CLIPVisionModelWithProjection", body="vision_model.", dtype=torch.float32, **CLIP_VISION
    )
    yield Pair("clip-tower-projected", "a vision tower with its projection", published, projected)
    text = build("CLIPTextModel", body="text_model.", dtype=torch.float32)
    text = text.renamed(lambda n: n if n.startswith("text_model.") else f"text_model.{n}")
    yield Pair("clip-text", "a text tower", published, text)
    siglip = build("SiglipModel", dtype=torch.float32)
    seen = build("SiglipVisionModel", body="vision_model.", dtype=torch.float32)
    yield Pair(
        "siglip-tower",
        "the vision tower of SigLIP",
        siglip,
        seen.renamed(lambda n: n if n.startswith("vision_model.") else f"vision_model.{n}"),
    )
    vit = build("ViTModel", dtype=torch.float32)
    pets = build("ViTForImageClassification", dtype=torch.float32, num_labels=37)
    thousand = build("ViTForImageClassification", dtype=torch.float32, num_labels=1000)
    yield Pair("vit-classes", "37 classes over 1000", thousand, pets,
               refused=("classifier.", "--heads"))  # fmt: skip
    yield Pair("vit-classes-kept", "their head beside", thousand, pets, ("--heads", "keep"))
    yield Pair("vit-prefix", "a classifier over ViTModel", vit, pets, ("--heads", "keep"))
    yield Pair("vit-memory", "named as in memory", thousand, build_memory(
        "ViTForImageClassification", num_labels=1000))  # fmt: skip
    dino = build("Dinov2Model", dtype=torch.float32)
    yield Pair("dinov2-classes", "a linear probe over DINOv2", dino,
               build("Dinov2ForImageClassification", dtype=torch.float32, num_labels=10),
               ("--heads", "keep"))  # fmt: skip
    whisper = build("WhisperForConditionalGeneration", dtype=torch.float32)
    yield Pair(
        "whisper",
        "Whisper with its output stored twice",
        whisper.with_copy("proj_out.weight", "model.decoder.embed_tokens.weight"),
        whisper,
    )
    yield Pair("whisper-inner", "saved from WhisperModel", whisper, whisper.renamed(drop("model.")))
    wav = build("Wav2Vec2ForCTC", dtype=torch.float32)
    older = wav.renamed(swap(r"parametrizations\.weight\.original0", "weight_g")).renamed(
        swap(r"parametrizations\.weight\.original1", "weight_v")
    )
    yield Pair("wav2vec2", "weight normalisation under its old names", older, wav)


def build_memory(class_name: str, **config: Any) -> Model:
    """A model whose file has the names in memory."""
    model = build(class_name, dtype=torch.float32, **config)
    prefix = getattr(transformers, class_name).base_model_prefix

    def rename(name: str) -> str:
        place = model.places[name]
        return f"{prefix}.{place}" if name.startswith(f"{prefix}.") else place

    return model.renamed(rename)


def several_parts() -> Iterator[Pair]:
    text = {"hidden_size": 4096, "num_hidden_layers": 2, "vocab_size": 32064}
    llava = build(
        "LlavaForConditionalGeneration",
        text_config={**text, "model_type": "llama"},
        vision_config={"model_type": "clip_vision_model", "num_hidden_layers": 2},
    )
    memory = llava.renamed(lambda name: memory_name(llava, name))
    old = llava.renamed(lambda name: old_llava(memory_name(llava, name)))
    yield Pair("llava", "LLaVA-1.5, 2 layers: names of before in the base", old, memory)
    yield Pair("llava-expert", "the other way round", memory, old)
    llama = build("LlamaForCausalLM", body="language_model.", **text)
    yield Pair("llava-text", "a language model over LLaVA", old, llama)
    qwen_text = {**QWEN, "num_hidden_layers": 2, "hidden_size": 1536, "num_attention_heads": 12,
                 "intermediate_size": 8960,
                 "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}  # fmt: skip
    qwen = build("Qwen2VLForConditionalGeneration", text_config=qwen_text,
                 vision_config={"depth": 2, "hidden_size": 1536})  # fmt: skip
    inside = qwen.renamed(lambda name: memory_name(qwen, name))
    yield Pair("qwen2-vl", "Qwen2-VL-2B, 2 layers", qwen, inside)
    mixtral = build("MixtralForCausalLM", num_hidden_layers=1)
    yield Pair("mixtral", "Mixtral, 1 layer", mixtral, mixtral.renamed(add("module.")))
    moe = build("Qwen2MoeForCausalLM", num_hidden_layers=2)
    yield Pair("qwen-moe", "Qwen1.5-MoE, 2 layers", moe, moe.renamed(drop("model.")))


def memory_name(model: Model, name: str) -> str:
    place = model.places[name]
    return place if place.startswith("lm_head") else f"model.{place}"


def old_llava(name: str) -> str:
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
    return f"language_model.{name}" if name.startswith("lm_head") else name


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    pairs = [*decoders(), *encoders(), *vision(), *several_parts()]
    for pair in pairs:
        right = (
            {"refused": list(pair.refused)}
            if pair.refused
            else {"plan": plan(pair.base, pair.expert)}
        )
        fields = {
            "note": pair.note,
            "options": list(pair.options),
            "base": describe(pair.base),
            "expert": describe(pair.expert),
            **right,
        }
        text = json.dumps(fields, indent=1)
        # One line for each tensor.
        text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
        text = re.sub(r"\[\s+(\"\w+\"),\s+(\[[^\]]*\])\s+\]", r"[\1, \2]", text)
        (FOLDER / f"{pair.name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(pairs)} pairs")
