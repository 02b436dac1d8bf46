"""Small tokenizers of both families, made on the spot: byte-level BPE, and sentencepiece-style BPE with byte fallback."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

EOS = "<|endoftext|>"
_CORPUS = ["Once upon a time there was a small house. The house was old, and the time was short."] * 4
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2's: a space in front, "▁" for spaces, <0x..> for what the vocabulary lacks, <s> in front of a text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    state = json.loads(tokenizer.to_str())
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    # Byte tokens are part of the model, not special: they give text.
    state["added_tokens"] = [one for one in state["added_tokens"] if not one["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def files(tokenizer: tokenizers.Tokenizer | None = None, **config: Any) -> dict[str, bytes]:
    """A model's tokenizer files; `config` goes into tokenizer_config.json."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS} | config
    return {
        "tokenizer.json": (tokenizer or byte_level()).to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }
