"""Calls of the C ABI in any order, with arguments of any kind.

    python -m tests.native.random_calls LIBRARY BUNDLE ONNXRUNTIME SEED COUNT

Prints how many statuses there were that aren't good. A crash is this process's own.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from tests.native.library import Native, OpenOptions, Prompt, RunOptions, Step, Tensor, Word

NUMBERS = (c_float * 64)(*([0.5] * 64))
PIXELS = np.zeros((48, 48, 3), np.uint8)
TEXT = np.random.default_rng(0).normal(size=(2, 40, 192)).astype(np.float32)


class Caller:
    """Somebody who doesn't read documentation."""

    def __init__(self, library: Path, bundle: bytes, runtime: bytes, seed: int) -> None:
        self.native, self.bundle, self.runtime = Native(library), bundle, runtime
        self.lib, self.chance = self.native.lib, random.Random(seed)
        self.bundles: list[c_void_p] = []
        self.runs: list[c_void_p] = []
        self.refused = 0

    def any_of(self, values: Sequence[Any]) -> Any:
        """One of them, or NULL."""
        return self.chance.choice([*values, None])

    def status(self, status: int | None) -> None:
        if not status:
            return
        self.refused += 1
        assert self.lib.accelaes_status_sentence(c_void_p(status))
        assert self.lib.accelaes_status_code(c_void_p(status)) in (1, 2, 4)
        self.lib.accelaes_status_free(c_void_p(status))

    def call(self) -> None:
        kinds = [self.open, self.close, self.new, self.free, self.input, self.prompt, self.look, self.next, self.next]
        self.chance.choice(kinds)()

    def open(self) -> None:
        if len(self.bundles) < 2:
            out = c_void_p()
            device = self.chance.choice([None, b"cpu", b"cpu", b"cuda", b"x"])
            options = byref(OpenOptions(library=self.runtime, skip_hashes=1, device=device))
            folder = self.any_of([self.bundle, b"/nowhere", b""])
            self.status(self.lib.accelaes_open(folder, self.any_of([options]), byref(out)))
            self.bundles += [out] if out else []

    def close(self) -> None:
        if self.bundles and self.chance.random() < 0.02:  # opening takes the longest
            self.lib.accelaes_close(self.bundles.pop())

    def new(self) -> None:
        if len(self.runs) >= 4:
            return
        chance, out = self.chance, c_void_p()
        options = RunOptions(
            preset=self.any_of([b"dense", b"ras", b"drift:budget=12", b"accelaes", b"?"]),
            plan=self.any_of([b"DDDDDD.b", b"DD", b"D..", b"xx", b""]),
            steps=chance.choice([0, 0, 2, 8, -5, 10**6]),
            images=chance.choice([0, 1, 9, -1]),
            unguided=chance.randrange(2),
            guidance=chance.choice([0.0, 4.5, float("nan")]),
            sigmas=chance.choice([NUMBERS, NUMBERS, None]),
            timesteps=chance.choice([NUMBERS, NUMBERS, None]),
        )
        if chance.random() < 0.2:
            options.size = chance.choice([0, 8, 16, 24, 10**9])
        self.status(self.lib.accelaes_run_new(self.any_of(self.bundles), self.any_of([byref(options)]), byref(out)))
        self.runs += [out] if out else []

    def free(self) -> None:
        if self.runs and self.chance.random() < 0.3:
            self.lib.accelaes_run_free(self.runs.pop(self.chance.randrange(len(self.runs))))

    def input(self) -> None:
        if not self.runs:
            return
        chance, structs, kept = self.chance, (Tensor * 4)(), []
        rows = chance.choice([1, 2])
        embedded = {
            "encoder_hidden_states": TEXT[:rows],
            "pooled_projections": np.ascontiguousarray(TEXT[:rows, 0]),
        }
        length, largest = chance.choice([32, 32, 32, 8, 1, 40]), chance.choice([746, 746, 10**9])
        ids = np.array([[chance.randrange(largest) for _ in range(length)] for _ in range(rows)])
        arrays = {
            "latents": np.zeros((1, 4, 24, 24), np.float32),
            **chance.choice([embedded, {"tokenizer.input_ids": ids, "tokenizer_2.input_ids": ids}]),
            "token_weights": np.ascontiguousarray(TEXT[:1, :, 0]),
        }
        for struct, (name, array) in zip(structs, arrays.items(), strict=True):
            shape = (c_int64 * 4)(*array.shape)
            kept.append(shape)
            struct.__init__(  # type: ignore[misc]
                name=name.encode() if chance.random() < 0.97 else self.any_of([b"", b"x"]),
                is_int64=(array.dtype == np.int64) != (chance.random() < 0.02),
                data=array.ctypes.data if chance.random() < 0.97 else None,
                shape=ctypes.cast(shape, POINTER(c_int64)),
                rank=array.ndim if chance.random() < 0.97 else chance.choice([0, 1, -1]),
            )
        count = c_size_t(chance.choice([4, 4, 4, 3, 0]))
        self.status(self.lib.accelaes_run_input(chance.choice(self.runs), structs, count))

    def prompt(self) -> None:
        if not self.runs:
            return
        chance, prompts = self.chance, (Prompt * 2)()
        texts = [b"a Red star", b"", b"(glossy:1.2) it's", b"\xff", b"\xf0\x9f\x98\x80", b"x" * 3000]
        for prompt in prompts:
            given = {name: self.any_of(texts) for name in ("text", "negative", "text_2") if chance.random() < 0.9}
            prompt.__init__(**given)  # type: ignore[misc]
            if chance.random() < 0.03:
                prompt.size = chance.choice([0, 8, 16, 10**6])
        count = c_size_t(chance.choice([1, 1, 1, 2, 0, 10**9]))
        run, given = chance.choice(self.runs), self.any_of([prompts, prompts, prompts])
        self.status(self.lib.accelaes_run_prompt(run, given, count, None, c_size_t(chance.choice([0, 0, 0, 3]))))

    def look(self) -> None:
        word = self.any_of([byref(Word())])
        self.lib.accelaes_run_word(self.any_of(self.runs), self.chance.randint(-1, 2), self.chance.randint(-1, 9), word)
        run, count, n = self.any_of(self.runs), c_size_t(), c_int()
        self.lib.accelaes_run_latents(run, byref(count))
        self.lib.accelaes_run_focus(run, byref(n))
        if self.chance.random() < 0.05:
            self.lib.accelaes_run_cancel(run)
        if self.chance.random() < 0.1:
            size = self.chance.choice([PIXELS.nbytes, 0, 1])
            place = self.any_of([PIXELS.ctypes.data_as(c_void_p)])
            self.status(self.lib.accelaes_run_picture(run, place, c_size_t(size)))

    def next(self) -> None:
        step, more = self.any_of([byref(Step())]), self.any_of([byref(c_int())])
        self.status(self.lib.accelaes_run_next(self.any_of(self.runs), step, more))

    def let_go(self) -> None:
        for run in self.runs:
            self.lib.accelaes_run_free(run)
        for bundle in self.bundles:
            self.lib.accelaes_close(bundle)


def main(library: str, bundle: str, runtime: str, seed: str, count: str) -> None:
    caller = Caller(Path(library), bundle.encode(), runtime.encode(), int(seed))
    for _ in range(int(count)):
        caller.call()
    caller.let_go()
    print(caller.refused)


if __name__ == "__main__":
    main(*sys.argv[1:])
