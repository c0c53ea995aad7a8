"""Tiny language models with tokenizers in the shapes of Llama, Qwen, Gemma, GPT-2 and T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Question: is this true? Answer: Yes, it is. Or no, it is not.",
    "The capital of France is Paris, and the cat sat on the mat.",
    "good films are fun and bad films are dull; one, two, three = 1 2 3 12 23 123",
    "You are a helpful assistant. user model system <hello> [world]",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + "
    "m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + "
    "eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ '<start_of_turn>' + "
    "('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] | trim + "
    "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def write_family(folder: Path, family: str) -> Path:
    """Write the model and the tokenizer of a family: llama2, llama3, qwen, gemma, gpt2 or t5."""
    tokenizer = _TOKENIZERS[family]()
    torch.manual_seed(0)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = _MODELS[family](ids).eval()
    with torch.no_grad():  # random initial weights are small: logits would be almost equal
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _decoder(name: str, **fields: Any) -> Any:
    def make(ids: dict[str, Any]) -> Any:
        config = getattr(transformers, f"{name}Config")(**_SIZES, **fields, **ids)
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return make


def _gpt2(ids: dict[str, Any]) -> Any:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **ids)
    return transformers.GPT2LMHeadModel(config)


def _t5(ids: dict[str, Any]) -> Any:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **ids
    )
    return transformers.T5ForConditionalGeneration(config)


_MODELS = {
    "llama2": _decoder("Llama"),
    "llama3": _decoder("Llama"),
    "qwen": _decoder("Qwen2"),
    "gemma": _decoder("Gemma", head_dim=8),
    "gpt2": _gpt2,
    "t5": _t5,
}


def _wrap(
    tokenizer: Tokenizer, special: list[str], single: str | None, template: str | None = None,
    **names: Any,
) -> PreTrainedTokenizerFast:  # fmt: skip
    tokenizer.add_special_tokens(special)
    if single:
        used = [token for token in special if token in single.split()]
        pairs = [(token, tokenizer.token_to_id(token)) for token in used]
        tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=pairs)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )
    wrapped.chat_template = template
    return wrapped


def _byte_level(special: list[str]) -> Tokenizer:
    """Byte-level BPE as in GPT-2, Llama 3 and Qwen: words have their space before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def _bytes_fallback(special: list[str], prefix: bool) -> Tokenizer:
    """BPE over whole texts with bytes as a last resort, as SentencePiece's in Llama 2 and Gemma."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # Trained on words, used on whole texts, in which tokens may also begin inside of words.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    return tokenizer


def _llama2() -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>"]
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return _wrap(_bytes_fallback(special, True), special, "<s> $A", LLAMA2, **names)


def _gemma() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return _wrap(_bytes_fallback(special, False), special, "<bos> $A", GEMMA, **names)


def _llama3() -> PreTrainedTokenizerFast:
    begin = "<|begin_of_text|>"
    special = [begin, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    names = {"bos_token": begin, "eos_token": "<|eot_id|>"}
    return _wrap(_byte_level(special), special, f"{begin} $A", LLAMA3, **names)


def _qwen() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return _wrap(_byte_level(special), special, None, CHATML, **names)


def _gpt2_tokenizer() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    return _wrap(_byte_level([end]), [end], None, bos_token=end, eos_token=end)


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram over words with their space before them, and </s> at the end of every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _wrap(tokenizer, special, "$A </s>", **names)


_TOKENIZERS = {
    "llama2": _llama2,
    "llama3": _llama3,
    "qwen": _qwen,
    "gemma": _gemma,
    "gpt2": _gpt2_tokenizer,
    "t5": _t5_tokenizer,
}
FAMILIES = tuple(_TOKENIZERS)
