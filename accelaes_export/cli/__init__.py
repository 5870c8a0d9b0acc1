"""The command line. A group that imports a verb's file when the verb is used, and turns errors into one line.

Every verb is a file here with a click command and no logic of its own: it reads options, calls the library and
prints what comes back.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from accelaes_export import __version__
from accelaes_export.cli.process import Streams, require_process
from accelaes_export.errors import AccelAesError, BuildError, InputError, WriteError
from accelaes_export.files.writing import NO_SPACE
from accelaes_export.memory import lacks_memory, require_address_space

_COMPUTING = {"build", "verify", "run", "profile", "evaluate", "tune"}
VERBS = ("models", "build", "inspect", "verify", "run", "profile", "evaluate", "tune", "plugin", "sdk", "doctor")
_LONGEST_WORD = 500  # of a message: what somebody gave may be a number of 5,000 digits
_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class VerbGroup(click.Group):
    """Loads `accelaes_export.cli.<verb>` on demand; every error becomes `error: ...` on stderr and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"accelaes_export.cli.{cmd_name}").command
        return command

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run one command line and exit with its code: 0, or what the error says (see accelaes_export.errors)."""
        with Streams() as streams:
            try:
                words = sys.argv[1:] if args is None else list(args)
                require_process()
                if set(words[:1]) & _COMPUTING and not {"-h", "--help"} & set(words):
                    require_address_space()
                code = super().main(args, "accelaes-export", **extra | {"standalone_mode": False})
                streams.check()
                sys.exit(code if isinstance(code, int) else 0)
            except click.exceptions.NoArgsIsHelpError as error:
                click.echo(error.format_message(), err=True)
                sys.exit(error.exit_code)
            except (Exception, KeyboardInterrupt) as error:
                _fail(error)


def _fail(error: BaseException) -> NoReturn:
    """Say in one line what went wrong, and end with its code."""
    message, code = _described(error)
    if os.environ.get("ACCELAES_DEBUG"):
        traceback.print_exc()
    words = (word if len(word) <= _LONGEST_WORD else f"{word[:40]}…" for word in message.split())
    click.echo(f"{click.style('error:', fg='red')} {' '.join(words)}", err=True)
    sys.exit(code)


def _described(error: BaseException) -> tuple[str, int]:
    """An error's sentence and exit code."""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", _INTERRUPTED
    if isinstance(error, click.ClickException):
        return _with_pointer_to_help(error), error.exit_code
    if isinstance(error, AccelAesError):
        return str(error), error.exit_code
    if lacks_memory(error):
        return (
            "out of memory; close other programs, or build with fewer buckets or a smaller dtype.",
            BuildError.exit_code,
        )
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename} can't be used: " if error.filename else ""
        lacking = error.errno in (*NO_SPACE, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EIO)
        return f"{place}{error.strerror}.", WriteError.exit_code if lacking else InputError.exit_code
    what = f"unexpected {type(error).__name__}: {error}"
    return f"{what} (set ACCELAES_DEBUG=1 for the traceback)", AccelAesError.exit_code


def _with_pointer_to_help(error: click.ClickException) -> str:
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message.rstrip('.')}; see {error.ctx.command_path} --help."
    return message


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 bad input, 3 a build or write failed, 4 something missing, 130 stopped.",
)
@click.version_option(__version__, prog_name="accelaes-export", message="%(prog)s %(version)s")
def main() -> None:
    """Turn a DiT checkpoint into a bundle of compiled engines that compute focus tokens and reuse the background.

    \b
    Example: build the checkpoint that ships with this package, then make a picture.
        accelaes-export build --model shapes -o engines/built/shapes
        accelaes-export run engines/built/shapes --prompt "an intricate red star on the left" -o star.png
    """
