"""One table of a TOML file: getters that name the file, the key, what was expected and found.

Standard library only, and it knows no key by name.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import stat
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MOST = 4 << 20
"""Bytes of a file that is read whole. ImageNet-21k's labels, and a row for its canary, take one
each at most; tomllib needs seconds for much more, and the front, which reads them, has none."""


class SpecError(Exception):
    """A model's folder is not what it should be.

    Attributes:
        file: the file at fault.
        key: the key, line or tensor in it; empty where the file as a whole is meant.
        expected, found: two phrases that complete "expected …, found …".
    """

    def __init__(self, file: Path, key: str, expected: str, found: str) -> None:
        super().__init__(file, key, expected, found)
        self.file = file
        self.key = key
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else str(self.file)
        return f"{where}: expected {self.expected}, found {self.found}"


class Table:
    """One table of model.toml; every getter names the key at fault."""

    def __init__(self, file: Path, prefix: str, values: Any, known: Iterable[str]) -> None:
        if not isinstance(values, dict):
            raise SpecError(file, prefix.rstrip("."), "a table", _show(values))
        self._file = file
        self._prefix = prefix
        self._values: dict[str, Any] = values
        known = list(known)
        for key in values:
            # First of all: a misspelt key also leaves a required one missing, and this says why.
            if key not in known:
                near = difflib.get_close_matches(key, known, n=2)
                expected = " or ".join(near) if near else "one of " + ", ".join(known)
                raise SpecError(file, prefix + key, expected, "an unknown key")

    def fail(self, key: str, expected: str, found: Any) -> SpecError:
        """Make the error for `key`, showing `found` as the file has it."""
        return SpecError(self._file, self._prefix + key, expected, _show(found))

    def has(self, key: str) -> bool:
        return key in self._values

    def value(self, key: str) -> Any:
        """Return what stands there, unchecked; None where nothing does."""
        return self._values.get(key)

    def keys(self) -> Iterable[str]:
        return self._values.keys()

    def text(self, key: str) -> str:
        """Return a required string."""
        value = self._values.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, "a string", value)
        return value

    def choice(self, key: str, among: Any, default: Any = None) -> Any:
        """Return one of the strings of the Literal `among`; required without a default."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in get_args(among):
            raise self.fail(key, "one of " + ", ".join(get_args(among)), value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false", value)
        return value

    def whole(self, key: str, low: int, high: int) -> int | None:
        """Return a whole number, or None where the key is absent."""
        value = self._values.get(key)
        if value is not None and not _is_whole(value, low, high):
            raise self.fail(key, f"a whole number from {low} to {high}", value)
        return value

    def wholes(self, key: str, count: int, low: int, high: int) -> tuple[int, ...]:
        """Return a required array of `count` whole numbers."""
        value = self._values.get(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(_is_whole(one, low, high) for one in value)
        ):
            raise self.fail(key, f"{count} whole numbers from {low} to {high}", value)
        return tuple(value)

    def number(self, key: str) -> float:
        """Return a required finite number."""
        value: Any = self._values.get(key)
        if not _is_finite(value):
            raise self.fail(key, "a finite number", value)
        return float(value)

    def numbers(self, key: str, count: int, what: str = "finite numbers") -> tuple[float, ...]:
        """Return a required array of `count` finite numbers."""
        value = self._values.get(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(_is_finite(one) for one in value)
        ):
            raise self.fail(key, f"{count} {what}", value)
        return tuple(float(one) for one in value)

    def path(self, key: str, folder: Path) -> Path:
        """Return the path of an existing file that is named relative to `folder`.

        A symbolic link may lead out of the folder: a user who can make a link there can write the
        file as well. A name may not: the folder must work wherever it is put.
        """
        value = self.text(key)
        name = PurePosixPath(value)
        if name.is_absolute() or ".." in name.parts:
            raise self.fail(key, "a path inside the model's folder", value)
        expected = f"a file in {folder}"
        try:
            regular = stat.S_ISREG((folder / name).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL
            regular = False
        except OSError as error:
            found = f"{_show(value)}: {error.strerror}"
            raise SpecError(self._file, self._prefix + key, expected, found) from None
        if not regular:
            raise self.fail(key, expected, value)
        return folder / name

    def table(self, key: str, kind: type[DataclassInstance]) -> Table:
        """Return the table `key`, empty where absent, whose keys are the fields of `kind`."""
        known = (one.name for one in fields(kind))
        return Table(self._file, f"{self._prefix}{key}.", self._values.get(key, {}), known)


def read(file: Path, most: int = MOST) -> bytes:
    """Return the bytes of a file. Never blocks: a named pipe is refused, not waited for.

    Raises:
        SpecError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                kind = "Is a directory" if stat.S_ISDIR(mode) else "no regular file"
                raise SpecError(file, "", "a readable file", kind)
            with open(descriptor, "rb", closefd=False) as opened:
                data = opened.read(most + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SpecError(file, "", "a readable file", error.strerror or str(error)) from None
    if len(data) > most:
        found = f"more than {most} bytes, the most that is read"
        raise SpecError(file, "", "a readable file", found)
    return data


def _is_whole(value: Any, low: int, high: int) -> bool:
    # In Python True is an int; in TOML it is not.
    return type(value) is int and low <= value <= high


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold; TOML's whole numbers have no end."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _show(value: Any) -> str:
    """Show a value much as model.toml has it, cut short."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values"
    try:
        shown = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # sys.set_int_max_str_digits; in TOML only hexadecimals get so far
        return "a number of thousands of digits"
    return shown if len(shown) <= 80 else shown[:79] + "…"
