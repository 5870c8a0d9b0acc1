"""The notation that people paste into prompts from other programs, which says nothing of what is to be seen."""

from __future__ import annotations

import re

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_END = r"(?=[\s,;)\]}|]|\.(?!\d)|$)"

# Each is blanked where the pattern's groups are. They are tried in this order again and again, so that what is nested
# is found from the inside out.
_NOTATION = (
    # Automatic1111, ComfyUI: <lora:name:0.8>, (words:1.3), [from:to:0.5], words:1.2; Midjourney: words::2
    re.compile(r"(<(?:lora|lyco|hypernet|embedding):[^<>]*>)", re.IGNORECASE),
    re.compile(rf"(?<=[^\W\d_])(:{{1,2}}{_NUMBER}){_END}"),
    re.compile(rf"(\()[^()]*?(:\s*{_NUMBER}\s*\))"),
    re.compile(rf"(\[)[^\[\]]*?(:\s*{_NUMBER}\s*\])"),
    # Compel: (words)1.2, (words)++, word--, word++
    re.compile(rf"(\()[^()]*?(\)(?:{_NUMBER}|\++|-+))"),
    re.compile(r"(?<=\w)(\++|--+)(?=[\s,.;)]|$)"),
    # (more), [less], {NovelAI's more}, \(brackets of a tag\)
    re.compile(r"(\\?\()[^()]*?(\\?\))"),
    re.compile(r"(\\?\[)[^\[\]]*?(\\?\])"),
    re.compile(r"(\\?\{)[^{}]*?(\\?\})"),
    # __wildcard__, **bold**
    re.compile(r"(?<!\w)(_{1,3})(?=[^\W_])"),
    re.compile(r"(?<=[^\W_])(_{1,3})(?!\w)"),
    re.compile(r"(?<!\S)(\*{1,3})[^\s*](?:[^*]*[^\s*])?(\*{1,3})(?!\w)"),
)

_DEEPEST = 16  # nobody nests deeper; a prompt of a thousand brackets must not take a thousand passes

# Automatic1111's word between two chunks: it ends a phrase, so a comma stands for it.
_BREAK = re.compile(r"\bBREAK\b")


def without_notation(prompt: str) -> str:
    """`prompt` with blanks in place of the notation of prompt weights, so that every word stays at its place."""
    prompt = _BREAK.sub(",    ", prompt)
    for _ in range(_DEEPEST):
        plain = prompt
        for pattern in _NOTATION:
            plain = pattern.sub(_blanked, plain)
        if plain == prompt:
            break
        prompt = plain
    return prompt


def _blanked(match: re.Match[str]) -> str:
    """The match with blanks in place of its groups."""
    text = match.group()
    for k in range(1, len(match.groups()) + 1):
        start, end = (place - match.start() for place in match.span(k))
        text = text[:start] + " " * (end - start) + text[end:]
    return text
