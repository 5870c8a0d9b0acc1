"""libaccelaes through its C ABI, as a program of another language would call it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np


class Sized(ctypes.Structure):
    """A struct that begins with its own size."""

    def __init__(self, **fields: object) -> None:
        super().__init__(size=ctypes.sizeof(self), **fields)


class OpenOptions(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("library", c_char_p),
        ("engines", c_char_p),
        ("threads", c_int),
        ("skip_hashes", c_int),
        ("allow_code", c_int),
        ("device", c_char_p),
        ("stream", c_void_p),
    ]


class Facts(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("images", c_int),
        ("tokens", c_int),
        ("text_tokens", c_int),
        ("guided_rows", c_int),
        ("uncond_first", c_int),
        ("steps", c_int),
        ("guidance", c_double),
        ("latent_rank", c_int),
        ("latent_shape", c_int64 * 4),
        ("presets", c_int),
        ("encodes", c_int),
        ("picture_height", c_int),
        ("picture_width", c_int),
        ("picture_frames", c_int),
    ]


class RunOptions(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("preset", c_char_p),
        ("plan", c_char_p),
        ("steps", c_int),
        ("images", c_int),
        ("unguided", c_int),
        ("guidance", c_double),
        ("sigmas", POINTER(c_float)),
        ("timesteps", POINTER(c_float)),
        ("seed", ctypes.c_uint64),
    ]


class Tensor(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("is_int64", c_int),
        ("data", c_void_p),
        ("shape", POINTER(c_int64)),
        ("rank", c_int),
    ]


class Prompt(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("text", c_char_p),
        ("negative", c_char_p),
        ("text_2", c_char_p),
        ("negative_2", c_char_p),
        ("text_3", c_char_p),
        ("negative_3", c_char_p),
    ]


class Word(Sized):
    _fields_ = [("size", c_size_t), ("text", c_char_p), ("weight", c_double)]


class Step(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("index", c_int),
        ("symbol", ctypes.c_char),
        ("tokens", c_int),
        ("seconds", c_double),
        ("engine_seconds", c_double),
    ]


class NativeError(Exception):
    """A status that isn't good."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Native:
    """The library's functions.

    Args:
        path: of libaccelaes.so.
    """

    def __init__(self, path: Path) -> None:
        self.lib = lib = ctypes.CDLL(str(path))
        lib.accelaes_status_sentence.restype = c_char_p
        lib.accelaes_preset_name.restype = c_char_p
        lib.accelaes_run_latents.restype = POINTER(c_float)
        lib.accelaes_run_focus.restype = POINTER(c_int64)
        for name in ("open", "run_bytes", "run_new", "run_input", "run_prompt", "run_next", "run_picture"):
            getattr(lib, f"accelaes_{name}").restype = c_void_p
        for name in ("close", "run_free", "run_cancel", "bundle_facts", "status_free"):
            getattr(lib, f"accelaes_{name}").restype = None

    def check(self, status: int | None) -> None:
        if not status:
            return
        code = self.lib.accelaes_status_code(c_void_p(status))
        sentence = self.lib.accelaes_status_sentence(c_void_p(status)).decode()
        self.lib.accelaes_status_free(c_void_p(status))
        raise NativeError(code, sentence)

    def open(self, folder: Path, **options: object) -> NativeBundle:
        given, bundle = OpenOptions(**options), c_void_p()
        self.check(self.lib.accelaes_open(str(folder).encode(), byref(given), byref(bundle)))
        return NativeBundle(self, bundle)


class NativeBundle:
    """An opened bundle."""

    def __init__(self, native: Native, handle: c_void_p) -> None:
        self.native, self.handle = native, handle
        self.facts = Facts()
        native.lib.accelaes_bundle_facts(handle, byref(self.facts))
        names = (native.lib.accelaes_preset_name(handle, k) for k in range(self.facts.presets))
        self.presets = [name.decode() for name in names]

    def close(self) -> None:
        self.native.lib.accelaes_close(self.handle)

    def options(self, sigmas: np.ndarray | None, timesteps: np.ndarray | None, **options: object) -> RunOptions:
        if sigmas is None or timesteps is None:
            return RunOptions(**options)
        self._kept = sigmas, timesteps = [np.ascontiguousarray(a, dtype=np.float32) for a in (sigmas, timesteps)]
        pointers = [array.ctypes.data_as(POINTER(c_float)) for array in (sigmas, timesteps)]
        return RunOptions(sigmas=pointers[0], timesteps=pointers[1], **options)

    def run_bytes(
        self, sigmas: np.ndarray | None = None, timesteps: np.ndarray | None = None, **options: object
    ) -> tuple[int, int]:
        """Memory of the process and of its device."""
        given, host, device = self.options(sigmas, timesteps, **options), c_size_t(), c_size_t()
        self.native.check(self.native.lib.accelaes_run_bytes(self.handle, byref(given), byref(host), byref(device)))
        return host.value, device.value

    def run(self, sigmas: np.ndarray | None, timesteps: np.ndarray | None, **options: object) -> NativeRun:
        given, run = self.options(sigmas, timesteps, **options), c_void_p()
        self.native.check(self.native.lib.accelaes_run_new(self.handle, byref(given), byref(run)))
        return NativeRun(self.native, run)


class NativeRun:
    """A run."""

    def __init__(self, native: Native, handle: c_void_p) -> None:
        self.native, self.handle = native, handle

    def input(self, **tensors: np.ndarray) -> None:
        with_tensors = self.native.lib.accelaes_run_input
        self._given(tensors, lambda structs, count: with_tensors(self.handle, structs, count))

    def prompt(self, *texts: str | dict[str, str], tensors: dict[str, np.ndarray] | None = None) -> None:
        """A prompt, or fields of the struct; one for each image or fewer."""
        written = [{"text": text} if isinstance(text, str) else text for text in texts]
        prompts = (Prompt * len(texts))()
        for prompt, fields in zip(prompts, written, strict=True):
            prompt.__init__(**{name: text.encode() for name, text in fields.items()})  # type: ignore[misc]
        with_prompts = self.native.lib.accelaes_run_prompt
        self._given(
            tensors or {},
            lambda structs, count: with_prompts(self.handle, prompts, c_size_t(len(texts)), structs, count),
        )

    def words(self, image: int = 0) -> list[tuple[str, float]]:
        """The words of an image's prompt and what each weighs."""
        found, word = [], Word()
        while self.native.lib.accelaes_run_word(self.handle, image, len(found), byref(word)):
            found.append((word.text.decode(), word.weight))
        return found

    def _given(self, tensors: dict[str, np.ndarray], call: Callable[[Any, c_size_t], int | None]) -> None:
        kept, structs = [], (Tensor * len(tensors))()
        for struct, (name, array) in zip(structs, tensors.items(), strict=True):
            array = np.ascontiguousarray(array, dtype=np.int64 if array.dtype.kind == "i" else np.float32)
            shape = (c_int64 * array.ndim)(*array.shape)
            kept += [array, shape]
            struct.__init__(  # type: ignore[misc]
                name=name.encode(),
                is_int64=array.dtype.kind == "i",
                data=array.ctypes.data,
                shape=ctypes.cast(shape, POINTER(c_int64)),
                rank=array.ndim,
            )
        self.native.check(call(structs, c_size_t(len(tensors))))

    def next(self) -> tuple[Step, bool]:
        step, more = Step(), c_int()
        self.native.check(self.native.lib.accelaes_run_next(self.handle, byref(step), byref(more)))
        return step, bool(more)

    def latents(self) -> np.ndarray:
        count = c_size_t()
        data = self.native.lib.accelaes_run_latents(self.handle, byref(count))
        return np.ctypeslib.as_array(data, (count.value,)).copy()

    def picture(self, height: int, width: int, images: int = 1, frames: int = 1) -> np.ndarray:
        """[b, height, width, 3] bytes, of videos [b, frames, height, width, 3]."""
        pixels = np.zeros((images, *([frames] if frames > 1 else []), height, width, 3), np.uint8)
        place = pixels.ctypes.data_as(c_void_p)
        self.native.check(self.native.lib.accelaes_run_picture(self.handle, place, c_size_t(pixels.nbytes)))
        return pixels

    def focus(self, images: int = 1) -> np.ndarray:
        n = c_int()
        data = self.native.lib.accelaes_run_focus(self.handle, byref(n))
        return np.ctypeslib.as_array(data, (images, n.value)).copy() if n.value else np.zeros((images, 0), np.int64)

    def cancel(self) -> None:
        self.native.lib.accelaes_run_cancel(self.handle)

    def free(self) -> None:
        self.native.lib.accelaes_run_free(self.handle)
