"""Where images come from: a path, a descriptor, bytes or a stream becomes one descriptor.

The client opens what the user may open, and the daemon gets the descriptor. Regular files go as
they are. Everything else becomes a sealed memfd: pipes, because a worker must never wait for
their writer, and bytes, because they have no descriptor. Nothing here waits; the exchange polls.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat

from swiprctl.errors import CannotOpen, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    Input = str | os.PathLike[str] | bytes | bytearray | memoryview | int | BinaryIO

MAX_STREAM = 64 << 20
"""Bytes of an image that comes through a pipe or from memory."""

_CHUNK = 1 << 20
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class NoDescriptor(CannotOpen):
    """No descriptor is left, here or on the host: one is when an image under way is closed."""


class Image:
    """One image's bytes behind one descriptor, which this object owns until `close()`.

    Attributes:
        descriptor: what can be passed; None while a stream is being read.
        stream: what has to be polled and `pump()`ed first; None once it is read.
    """

    __slots__ = ("_memory", "_size", "descriptor", "stream")

    def __init__(self, descriptor: int | None, stream: int | None = None) -> None:
        self.descriptor = descriptor
        self.stream = stream
        self._memory = -1
        self._size = 0

    @classmethod
    def open(cls, source: Input) -> Image:
        """Take a path, bytes, a descriptor (which stays the caller's) or a binary file object.

        A file object that is not a plain file at its beginning is read to its end here, however
        long that takes; give its `fileno()` to have that done under the request's deadline.

        Raises:
            NoDescriptor: too many are open.
            CannotOpen: there is no such file, or no permission, or it cannot hold an image.
            TooLarge: bytes, or what a file object holds, exceed `MAX_STREAM`.
            TypeError: the source is none of these.
        """
        if isinstance(source, int):
            return cls._from_descriptor(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return cls._from_bytes(memoryview(source))
        if not isinstance(source, str | os.PathLike):
            return cls._from_file(source)
        path = os.fspath(source)
        if not isinstance(path, str):
            raise TypeError("a path is text; bytes are taken for the image itself")
        try:
            # O_NONBLOCK: a FIFO without a writer must not hold up the others.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise _cannot_open(error) from error
        except ValueError as error:
            raise CannotOpen(f"not a path: {error}") from error
        return cls._of_kind(descriptor)

    @classmethod
    def _from_descriptor(cls, descriptor: int) -> Image:
        try:
            copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno != errno.EBADF:
                raise _cannot_open(error) from error
            raise CannotOpen("not an open descriptor") from error
        return cls._of_kind(copy)

    @classmethod
    def _of_kind(cls, descriptor: int) -> Image:
        """Take over a descriptor, whatever it is of."""
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISREG(mode):
                # `{ read line; swiprctl predict -; } <file` means what is left of the file.
                if os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
                    return cls(descriptor)
            elif stat.S_ISDIR(mode):
                raise CannotOpen("it is a directory")
            elif os.isatty(descriptor):
                raise CannotOpen("it is a terminal")
            elif not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
                raise CannotOpen("it is a device")
            image = cls(None, descriptor)
            image._remember()
        except OSError as error:
            os.close(descriptor)
            raise _cannot_open(error) from error
        except CannotOpen:
            os.close(descriptor)
            raise
        return image

    @classmethod
    def _from_bytes(cls, data: memoryview) -> Image:
        image = cls(None)
        try:
            image._remember()
            image._add(data.cast("B"))
            image._seal()
        except BaseException:
            image.close()
            raise
        return image

    @classmethod
    def _from_file(cls, file: BinaryIO) -> Image:
        if not hasattr(file, "read"):
            raise TypeError(
                f"neither a path, bytes, a descriptor nor a file: {type(file).__name__}"
            )
        raw = getattr(file, "raw", file)
        # Only of these is it known that the descriptor gives the same bytes: gzip's does not.
        if isinstance(raw, io.FileIO):
            try:
                plain = stat.S_ISREG(os.fstat(raw.fileno()).st_mode) and file.tell() == 0
            except (OSError, ValueError) as error:
                raise CannotOpen(f"cannot read the file: {error}") from error
            if plain and os.lseek(raw.fileno(), 0, os.SEEK_CUR) == 0:
                return cls._from_descriptor(raw.fileno())
        image = cls(None)
        try:
            image._remember()
            while data := file.read(_CHUNK):
                if not isinstance(data, bytes | bytearray | memoryview):
                    raise TypeError("a file object must be opened in binary mode")
                image._add(memoryview(data))
            image._seal()
        except (OSError, ValueError) as error:
            image.close()
            raise CannotOpen(f"cannot read the file: {error}") from error
        except BaseException:
            image.close()
            raise
        return image

    def pump(self) -> bool:
        """Move what the stream has now, once poll(2) says so; True when its end was reached.

        Raises:
            CannotOpen: it cannot be read.
            TooLarge: it has more than `MAX_STREAM`.
        """
        if self.stream is None:
            return True
        try:
            data = os.read(self.stream, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _cannot_open(error) from error
        if data:
            self._add(memoryview(data))
            return False
        os.close(self.stream)
        self.stream = None
        self._seal()
        return True

    def inline(self) -> bytes:
        """Read the whole image, to be sent inside a frame.

        Raises:
            CannotOpen: it cannot be read.
            TooLarge: it has more than `MAX_STREAM`.
        """
        if self.descriptor is None:
            raise CannotOpen("it has been closed")
        parts = []
        size = 0
        try:
            while data := os.pread(self.descriptor, _CHUNK, size):
                parts.append(data)
                size += len(data)
                if size > MAX_STREAM:
                    raise TooLarge(f"more than {MAX_STREAM} bytes cannot go without a descriptor")
        except OSError as error:
            raise _cannot_open(error) from error
        return b"".join(parts)

    def close(self) -> None:
        """Close what is open. Can be called again."""
        for descriptor in (self.descriptor, self.stream):
            if descriptor is not None:
                os.close(descriptor)
        self.descriptor = self.stream = None
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _remember(self) -> None:
        try:
            self._memory = os.memfd_create("swipr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise _cannot_open(error, "no memory to hold it: ") from error

    def _add(self, data: memoryview) -> None:
        self._size += len(data)
        if self._size > MAX_STREAM:
            raise TooLarge(f"more than {MAX_STREAM} bytes, the limit for what is not a file")
        try:
            while data:
                data = data[os.write(self._memory, data) :]
        except OSError as error:
            raise CannotOpen(f"no memory to hold it: {error.strerror}") from error

    def _seal(self) -> None:
        """Make the bytes unchangeable, where the kernel lets us."""
        try:
            fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            pass  # EBUSY: it has pinned a page, seen on a busy host. Workers only read
        self.descriptor, self._memory = self._memory, -1


def _cannot_open(error: OSError, doing: str = "") -> CannotOpen:
    kind = NoDescriptor if error.errno in (errno.EMFILE, errno.ENFILE) else CannotOpen
    return kind(f"{doing}{error.strerror or error}")
