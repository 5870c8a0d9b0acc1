"""Tokenizers, words and notation natively, against the tokenizers library and the policies' own code, text by text."""

from __future__ import annotations

import random
import struct
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from accelaes_export.building.tokenizers import portable_form
from accelaes_export.policies.anchors import ANCHORS
from accelaes_export.policies.lexical import LexicalScorer, anchor_matches
from accelaes_export.policies.notation import without_notation
from accelaes_export.policies.words import WordScoring, split_words, weigh_words
from tests.native.building import SOURCES, missing, shared
from tests.policies.small_tokenizers import clip_tokenizer, qwen_tokenizer, t5_tokenizer

ROOT = SOURCES.parents[1]
WRITTEN = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/method.md")).split()
MARKED = [
    *(word for anchor in ANCHORS for word in anchor.split()),
    *(Path(__file__).with_name("marked_words.txt").read_text(encoding="utf-8").split()),
    "\n",
]


def texts(seed: int, count: int = 1500) -> list[str]:
    """Prompts, notation, scripts of every kind; of characters that every release of Unicode since 14 has."""
    chance = random.Random(seed)

    def one() -> str:
        kind = chance.random()
        if kind < 0.3:
            return " ".join(chance.choice(WRITTEN) for _ in range(chance.randint(0, 14)))
        if kind < 0.65:
            blank = [" ", " ", " ", "", ", ", "  ", "\t"]
            return "".join(chance.choice(MARKED) + chance.choice(blank) for _ in range(chance.randint(0, 14)))
        if kind < 0.75:
            return "".join(chance.choice("()[]{}<>:*_+-.,\\ 1aé BREAKlora\n") for _ in range(chance.randint(1, 40)))
        spans = [(32, 126), (160, 0x24F), (0x370, 0x5FF), (0x600, 0x6FF), (0x4E00, 0x4EFF), (0xAC00, 0xACFF)]
        spans += [(0x1100, 0x11FF), (0x300, 0x36F), (0x2000, 0x2100), (32, 32), (0xF900, 0xFAFF), (1, 0x1FFFF)]
        return "".join(chr(chance.randint(*chance.choice(spans))) for _ in range(chance.randint(1, 30)))

    made = [
        "",
        " ",
        "\n",
        "\x1c a",
        "a" * 300,
        "it's <|endoftext|> x</s> <extra_id_3> y",
        *(one() for _ in range(count)),
    ]
    return [text for text in made if all(unicodedata.category(c) not in ("Cn", "Cs") for c in text)]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/native/texts.cpp with the library's own sources, and sanitizers that end it at the first fault."""
    if missing():
        pytest.skip(f"{missing()} isn't here")
    made = shared(tmp_path_factory) / "texts"
    own = [*sorted((SOURCES / "src" / "text").glob("*.cpp")), *sorted((SOURCES / "src" / "words").glob("*.cpp"))]
    folders = ["-I", SOURCES / "src", "-I", SOURCES / "include"]
    checked = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [Path(__file__).with_name("texts.cpp"), *own]
    command = ["g++", "-std=c++17", *checked, *folders, *sources, "-lutf8proc", "-lpcre2-32", "-o", made]
    subprocess.run(command, check=True)
    return made


def lines(program: Path, given: list[str], *words: str) -> list[str]:
    written = b"".join(text.encode() + b"\0" for text in given)
    made = subprocess.run([program, *words], input=written, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
    found = made.stdout.decode().split("\n")[:-1]
    assert len(found) == len(given)
    return found


def points(line: str) -> str:
    return "".join(chr(int(point, 16)) for point in line.split())


def rows(line: str) -> list[tuple[float, ...]]:
    return [tuple(float(number) for number in part.split(":")) for part in line.split()]


def unigram(folder: Path) -> str:
    """T5's tokenizer as transformers makes it of a SentencePiece model, with SentencePiece's own normalisation."""
    import sentencepiece

    (folder / "text").write_text("\n".join(WRITTEN[k] + " " + WRITTEN[k + 1] for k in range(0, len(WRITTEN) - 1, 2)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "spiece"),
        vocab_size=900,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return portable(folder, "T5Tokenizer", 64)


def portable(folder: Path, kind: str, length: int) -> str:
    form = portable_form(folder, kind, length, None)
    assert form is not None
    return form


def saved(tokenizer: object, folder: Path, length: int) -> str:
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return portable(folder, type(tokenizer).__name__, length)


KINDS: dict[str, Callable[[Path], str]] = {
    "the shipped CLIP": lambda _: portable(ROOT / "engines/checkpoints/shapes/tokenizer", "CLIPTokenizer", 32),
    "a small CLIP": lambda folder: saved(clip_tokenizer(("star", "red", "stunning")), folder, 16),
    "a unigram without normalisation": lambda folder: saved(
        t5_tokenizer(("\u2581red", "\u2581star", "ar")), folder, 24
    ),
    "a unigram padded on the left": lambda folder: saved(t5_tokenizer(("\u2581red",), padding_side="left"), folder, 24),
    "SentencePiece's": unigram,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_tokens_and_characters_of_the_tokenizers_library(program, tmp_path, kind):
    file = tmp_path / "portable.json"
    file.write_text(KINDS[kind](tmp_path), encoding="utf-8")
    reference, given = Tokenizer.from_file(str(file)), texts(seed=len(kind))
    apart = 0
    for text, line in zip(given, lines(program, given, "tokens", str(file)), strict=True):
        encoding, found = reference.encode(text), rows(line)
        assert [token for token, *_ in found] == encoding.ids, ascii(text)
        spans = [(begin, end) if begin < end else (0, 0) for _, begin, end in found]
        apart += spans != [tuple(span) if span[0] < span[1] else (0, 0) for span in encoding.offsets]
    # Which of several marks on one letter a token comes of; never which word.
    assert apart <= len(given) * 0.02


@pytest.mark.parametrize("seed", [1, 2])
def test_words_and_their_weights_are_those_of_the_policies(program, seed):
    given, anchors = texts(seed), list(ANCHORS)
    for text, line in zip(given, lines(program, given, "notation"), strict=True):
        assert points(line) == without_notation(text), ascii(text)
    for text, line in zip(given, lines(program, given, "lower"), strict=True):
        assert points(line) == text.lower().strip(), ascii(text)
    for text, line in zip(given, lines(program, given, "words", *anchors), strict=True):
        words = split_words(text)
        anchored = anchor_matches(words, anchors)
        wanted = [(w.start, w.end, w.stop, w.clause, w.phrase, a) for w, a in zip(words, anchored, strict=True)]
        assert rows(line) == wanted, ascii(text)
    for scope in ("word", "phrase", "others", "all"):
        for text, line in zip(given, lines(program, given, "weigh", scope, "0.6", *anchors), strict=True):
            weighed = weigh_words(text, LexicalScorer(), anchors, WordScoring(0.6, scope))  # type: ignore[arg-type]
            spans = zip(weighed.spans, weighed.weights, strict=True)
            assert rows(line) == [(*span, weight) for span, weight in spans], ascii(text)


def test_anchors_of_the_users_own_match_in_any_form(program):
    anchors = ["close up", "photo-realistic", "Straße", "people", "wide_angle shot"]
    given = ["Close-ups of persons, PHOTO realistic STRASSE", "closeup, close, up", "wide angle shots; wide angle"]
    for text, line in zip(given, lines(program, given, "words", *anchors), strict=True):
        assert [bool(row[-1]) for row in rows(line)] == [
            bool(one) for one in anchor_matches(split_words(text), anchors)
        ]


def test_every_character_is_of_the_kind_that_python_says(program):
    made = subprocess.run([program, "kinds"], capture_output=True, check=True).stdout
    assert len(made) == 4 * 0x110000
    for point, (bits,) in enumerate(struct.iter_unpack("<I", made)):
        c = chr(point)
        kind = unicodedata.category(c)
        if kind != "Cn":
            letter, number, mark = (kind[0] == letter for letter in "LNM")
            assert bits == letter | number << 1 | mark << 2 | c.isspace() << 3 | c.isdigit() << 4, hex(point)


def test_the_stop_words_are_pythons():
    from accelaes_export.policies.stop_words import _STOP_WORDS

    listed = (SOURCES / "src" / "words" / "stop_words.inc").read_text()
    assert set(listed.replace('U"', "").replace('"', "").split()) == _STOP_WORDS


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: '{"added_tokens": [', "is damaged"),
        (lambda folder: '{"added_tokens": [], "model": {"type": "WordPiece"}}', "the model WordPiece; give their ids"),
        (
            lambda folder: '{"added_tokens": [], "normalizer": {"type": "BertNormalizer"}, "model": {}}',
            "the normalizer BertNormalizer; give",
        ),
        (
            lambda folder: (
                '{"added_tokens": [], "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}'
            ),
            r"The pattern \( is none",
        ),
        (lambda folder: '{"added_tokens": [{"id": 7e86, "content": "x"}]}', "a whole number was expected"),
        (
            lambda folder: '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
            "joins a and b, which it hasn't",
        ),
        (lambda folder: saved(qwen_tokenizer((" red",)), folder, 16).replace('"NFC"', '"NFD"'), "the normalizer NFD"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused_in_a_sentence(program, tmp_path, make, said):
    file = tmp_path / "portable.json"
    file.write_text(make(tmp_path), encoding="utf-8")
    made = subprocess.run([program, "tokens", file], input=b"a\0", capture_output=True, text=False, check=False)
    assert made.returncode == 2, made.stderr.decode()
    import re

    assert re.search(said, made.stderr.decode()) and made.stderr.count(b"\n") == 1


def test_damaged_tokenizers_are_read_or_refused(program, tmp_path):
    """Bytes and lines changed by chance; the sanitizers would end it."""
    chance, whole = random.Random(5), unigram(tmp_path)
    clip = portable(ROOT / "engines/checkpoints/shapes/tokenizer", "CLIPTokenizer", 32)
    file = tmp_path / "portable.json"
    read = 0
    for _ in range(60):
        text = chance.choice([whole, clip])
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(min(len(text), chance.choice([2000, len(text)])))
            text = text[:at] + chance.choice(["", "0", "9", "-", "A", "}", "null", '"', "\u2581"]) + text[at + 1 :]
        file.write_text(text, encoding="utf-8")
        made = subprocess.run([program, "tokens", file], input=b"a Red star\0", capture_output=True, check=False)
        assert made.returncode in (0, 2), made.stderr.decode()
        read += made.returncode == 0
    assert 0 < read < 60
