"""A model's folder, written whole or not at all.

It is made beside its place under another name, closed to everybody else whatever the umask and the
ACLs are, proven there by the caller, and renamed. The folder and its files get the modes 0755 and
0644: a program must be writable by nobody but its owner to be run, and the daemon's user must be
able to read all of it. Knows no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from swiprd.folder.spec import Preprocess
from swiprd.pack.errors import CannotCreate, CannotWrite, Interrupted
from swiprd.system.console import clean

LABELS = "labels.txt"

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A key of model.toml with its value and where that is from."""

    key: str
    value: object
    why: str = ""


class _Interruptions:
    """Signals that interrupt packing: raised where cleaning up is safe, and deferred elsewhere.

    In the main thread alone, where Python runs signal handlers.
    """

    def __init__(self) -> None:
        self._deferred = 0
        self._allowed = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle these signals, but for those that are ignored, as SIGHUP is under nohup."""
        handlers = {one: signal.getsignal(one) for one in _ENDS}
        before = {k: one for k, one in handlers.items() if one not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def allow(self) -> None:
        """Raise signals from now on, a deferred one at once.

        Raises:
            Interrupted: one was deferred.
        """
        self._allowed = True
        if self._deferred:
            self._take(self._deferred, None)

    def defer(self) -> None:
        """Defer signals from now on."""
        self._allowed = False

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._deferred = number
        if self._allowed:
            self._allowed = False  # a second one is not to disturb the cleaning up
            raise Interrupted(number)


@contextmanager
def making(folder: Path, *, replace: bool, note: Callable[[str], None]) -> Iterator[Path]:
    """Give a folder to fill that becomes `folder` if nothing is raised, and else is gone.

    While it is there, SIGINT, SIGTERM and SIGHUP are raised as Interrupted. What was put into it
    is to be handed to close().

    Args:
        replace: a model's folder that is there already is replaced, if it is one.
        note: takes what deserves to be told though `folder` is made.

    Raises:
        CannotCreate: there is something in the way, or the folder cannot be made.
        CannotWrite: it cannot be written to.
        Interrupted: a signal asked for an end, and nothing is made.
    """
    check_place(folder, replace=replace)
    interruptions = _Interruptions()
    with interruptions.watching():
        try:
            made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as error:
            raise CannotCreate(f"{folder}: cannot be made: {error.strerror}") from None
        try:
            interruptions.allow()
            yield made
            for file in made.iterdir():
                _flush(file)
            made.chmod(0o755)
            interruptions.defer()  # from here on there is nothing to wait for
            left = _put(made, folder)
        except OSError as error:
            raise CannotWrite(f"{folder}: {error.strerror or error}") from None
        finally:
            try:
                interruptions.defer()  # one that came during the last C call is raised here
            finally:
                shutil.rmtree(made, ignore_errors=True)
    if left is not None:
        note(f"{folder} is made; what was there before could not be removed: it is {left} now")


def close(made: Path) -> None:
    """Let nobody but the owner write to the files: before a program is proven, which is to be run.

    Raises:
        CannotWrite: it cannot be done.
    """
    for file in made.iterdir():
        try:
            file.chmod(0o644)
        except OSError as error:
            raise CannotWrite(f"{file}: {error.strerror}") from None


def check_place(folder: Path, *, replace: bool) -> None:
    """See that `folder` can be made.

    Raises:
        CannotCreate: it is there and not to be replaced, or what it would lie in is not there, or
            has a name that torch cannot open.
    """
    try:
        os.fsencode(folder.absolute()).decode()
    except OSError as error:  # where we are has been removed
        raise CannotCreate(f"{folder}: cannot be made: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CannotCreate(
            f"{folder.absolute()}: has bytes in its path that are not UTF-8, and torch opens no"
            " such file: make it elsewhere, or rename the folder above it"
        ) from None
    if not folder.parent.is_dir():
        raise CannotCreate(f"{folder}: there is no folder {folder.parent}: make it first")
    if not os.path.lexists(folder):
        return
    if not replace:
        raise CannotCreate(f"{folder}: is there already; --force replaces it")
    if folder.is_symlink() or not (folder / "model.toml").is_file():
        raise CannotCreate(f"{folder}: is no model's folder, and is not replaced")


def describe(lines: Sequence[Entry], preprocess: Preprocess, source: str, origin: str) -> str:
    """Write model.toml.

    Args:
        source: where the preprocessing is from.
        origin: what was packed.
    """
    # A name from a stranger's file cannot end a comment once it is cleaned.
    texts = [f"# Made by swiprd pack from {clean(origin)}", *map(_line, lines)]
    texts += ["", f"[preprocess]  # as {clean(source)}"]
    texts += [_line(Entry(key=key, value=value)) for key, value in _keys(preprocess)]
    return "\n".join(texts) + "\n"


def _keys(preprocess: Preprocess) -> Iterator[tuple[str, object]]:
    """Yield what stands under [preprocess]: all that says how, and of the rest what differs."""
    yield "resize", preprocess.resize or 0
    if preprocess.edge != "short":
        yield "edge", preprocess.edge
    yield "crop", preprocess.crop
    yield "crops", preprocess.crops
    if preprocess.middle != "even":
        yield "middle", preprocess.middle
    yield "interpolation", preprocess.interpolation
    yield "exif", preprocess.exif
    yield "mean", list(preprocess.mean)
    yield "std", list(preprocess.std)


def _line(line: Entry) -> str:
    # Of strings, numbers and lists of numbers JSON's text is TOML's.
    text = f"{line.key} = {json.dumps(line.value, ensure_ascii=False)}"
    return f"{text}  # {clean(line.why)}" if line.why else text


def _put(made: Path, folder: Path) -> Path | None:
    """Put the folder in its place; return what was there, if that could not be removed."""
    if not os.path.lexists(folder):
        made.rename(folder)
        return None
    old = made.with_name(f"{made.name}.old")
    folder.rename(old)
    try:
        made.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return old if os.path.lexists(old) else None


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
