"""Small real tokenizers of the kinds diffusion pipelines carry: CLIP's and Qwen's byte-level BPE, T5's Unigram."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(words: tuple[str, ...] = (), length: int = 77) -> Any:
    """transformers' CLIPTokenizer whose vocabulary merges `words` whole and leaves all others in bytes."""
    from transformers import CLIPTokenizer

    letters = _bytes()
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left = word[0]
        for i, letter in enumerate(word[1:], start=1):
            right = letter + ("</w>" if i == len(word) - 1 else "")
            merges[(left, right)] = None
            left += right
    symbols = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges), BEGIN, END]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return _made(CLIPTokenizer, vocab, merges, model_max_length=length)


def qwen_tokenizer(words: tuple[str, ...] = ()) -> Any:
    """transformers' Qwen2Tokenizer with chat tokens that merges `words`, each with the space before it, if any."""
    from transformers import Qwen2Tokenizer

    merges: dict[tuple[str, str], None] = {}
    for word in words:
        symbol = word.replace(" ", "\u0120")
        merges.update({(symbol[:i], symbol[i]): None for i in range(1, len(symbol))})
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys([*_bytes(), *map("".join, merges)]))}
    tokenizer = _made(Qwen2Tokenizer, vocab, merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def _made(kind: Any, vocab: dict[str, int], merges: Iterable[tuple[str, str]], **options: Any) -> Any:
    """A byte-pair tokenizer; before transformers 5 they were made of files alone."""
    if "vocab" in inspect.signature(kind.__init__).parameters:
        return kind(vocab=vocab, merges=list(merges), **options)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        files[0].write_text(json.dumps(vocab), encoding="utf-8")
        files[1].write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
        return kind(*map(str, files), **options)


def _bytes() -> list[str]:
    """The 256 bytes as GPT-2 writes them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + k) for k in range(len(others)))]


def t5_tokenizer(pieces: tuple[str, ...] = (), padding_side: str = "right") -> Any:
    """A fast Unigram tokenizer with T5's metaspace, end token and padding; `pieces` go before letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(33, 127)] + list("éü")
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -3.0)]
    vocab += [(piece, -2.0) for piece in pieces] + [(c, -6.0) for c in letters]
    backend = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side=padding_side
    )
