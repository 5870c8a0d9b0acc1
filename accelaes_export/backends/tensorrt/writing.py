"""A serialised engine goes to its file piece by piece, as TensorRT produces it."""

from __future__ import annotations

from typing import Any, BinaryIO


def file_writer(trt: Any, file: BinaryIO) -> Any:
    """An IStreamWriter of the library `trt` that writes to `file`.

    What the file refuses (a full disk) must not be raised into TensorRT's frames: it is kept in `error`, and the
    short count that is returned ends the build.
    """

    class FileWriter(trt.IStreamWriter):
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return FileWriter()
