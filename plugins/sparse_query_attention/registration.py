"""The plugin made known to a TensorRT library: the C++ one from a file, or the Python one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

from accelaes_export.plugins.sparse_query_attention import NAME, NAMESPACE, VERSION
from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from accelaes_export.plugins.sparse_query_attention.tensorrt_plugin import plugin_creator

LIBRARY_FILE = "libaccelaes_plugin.so"
LIBRARY_VARIABLE = "ACCELAES_PLUGIN"
_LOADED_BY_PARSER = "libtensorrt_rtx.so"


def registered(trt: Any) -> bool:
    """Whether the library `trt` knows a plugin of our name and version."""
    return any(
        (creator.name, creator.plugin_version, creator.plugin_namespace) == (NAME, VERSION, NAMESPACE)
        for creator in trt.get_plugin_registry().all_creators
    )


def register(trt: Any, library: Path | None = None) -> Any:
    """Make the plugin known to `trt`, unless it already is.

    Args:
        trt: the module tensorrt or tensorrt_rtx.
        library: libaccelaes_plugin.so; else what $ACCELAES_PLUGIN names; else the Python plugin.

    Returns:
        What has to live as long as engines with the plugin are built or run: a creator, or None.

    Raises MissingError for a library that isn't there, PluginError for one that isn't this plugin.
    """
    _name_for_the_parser(trt)
    if registered(trt):
        return None
    named = os.environ.get(LIBRARY_VARIABLE)
    library = library or (Path(named) if named else None)
    registry = trt.get_plugin_registry()
    if library is None:
        creator = plugin_creator(trt)
        if not registry.register_creator(creator, NAMESPACE):
            raise PluginError(f"{trt.__name__} refused the attention plugin; it knows another one of that name.")
        return creator
    if not library.is_file():
        raise MissingError(f"There is no attention plugin at {library}; build it as docs/plugin.md says.")
    registry.load_library(str(library))  # returns nothing in TensorRT-RTX, also where it registers
    if not registered(trt):
        raise PluginError(
            f"{library} loaded no plugin {NAME} {VERSION} into {trt.__name__}; build it for this version."
        )
    return None


def _name_for_the_parser(trt: Any) -> None:
    """TensorRT-RTX's ONNX parser opens libtensorrt_rtx.so at the first plugin, and ends the process where it can't.

    Its wheel has libtensorrt_rtx.so.1 alone. A library of that name, empty but for its dependency on the one that is
    loaded, is all the parser needs.
    """
    if not trt.__name__.startswith("tensorrt_rtx"):
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL(_LOADED_BY_PARSER)
        return
    loaded = _mapped_file(f"{_LOADED_BY_PARSER}.")
    if loaded is None:
        raise MissingError(f"{trt.__name__} has not loaded {_LOADED_BY_PARSER}; its installation is not complete.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _LOADED_BY_PARSER
        path.write_bytes(empty_library(_LOADED_BY_PARSER, needed=loaded.name, like=loaded))
        ctypes.CDLL(str(path))  # stays loaded; the file may go


def _mapped_file(start: str) -> Path | None:
    """A file this process has mapped whose name begins with `start`."""
    for line in os.fsdecode(Path("/proc/self/maps").read_bytes()).split("\n"):  # a path may be of any bytes
        path = Path(line.split(maxsplit=5)[-1] if line else "")
        if path.name.startswith(start):
            return path
    return None


def empty_library(soname: str, *, needed: str, like: Path) -> bytes:
    """An ELF shared object (64-bit, little endian) without code, called `soname`, that depends on `needed`.

    Args:
        like: a library of the same machine, whose header says which that is.
    """
    with like.open("rb") as file:
        machine = struct.unpack("<H", file.read(20)[18:])[0]
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    header, program = 64, 56
    symbols = header + 3 * program  # one null symbol
    hashes = symbols + 24  # one bucket, one chain, both empty
    dynamic = hashes + 16
    entries = 8
    text = dynamic + entries * 16
    size = text + len(strings)
    needed_at = 1 + len(soname) + 1
    tags = [
        (14, 1),  # DT_SONAME
        (1, needed_at),  # DT_NEEDED
        (5, text),  # DT_STRTAB
        (10, len(strings)),  # DT_STRSZ
        (6, symbols),  # DT_SYMTAB
        (11, 24),  # DT_SYMENT
        (4, hashes),  # DT_HASH
        (0, 0),  # DT_NULL
    ]
    assert len(tags) == entries
    read_write = 6
    segments = [
        (1, read_write, 0, size, 0x1000),  # PT_LOAD
        (2, read_write, dynamic, entries * 16, 8),  # PT_DYNAMIC
        (0x6474E551, read_write, 0, 0, 16),  # PT_GNU_STACK: without it the stack would have to be executable
    ]
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    shared_object = 3
    return b"".join(
        [
            struct.pack(
                "<16sHHIQQQIHHHHHH",
                *(identity, shared_object, machine, 1, 0, header, 0, 0, header, program, len(segments), 0, 0, 0),
            ),
            *(
                struct.pack("<IIQQQQQQ", kind, flags, at, at, at, length, length, align)
                for kind, flags, at, length, align in segments
            ),
            bytes(24),
            struct.pack("<4I", 1, 1, 0, 0),
            *(struct.pack("<QQ", *tag) for tag in tags),
            strings,
        ]
    )
