"""Where images come from: a path, a descriptor, bytes or a stream becomes one descriptor.

The client opens what the user may open, and the daemon gets the descriptor. Regular files go as
they are. Everything else becomes a sealed memfd: pipes, because a worker must never wait for
their writer, bytes, because they have no descriptor, and files whose file system's server may never
answer, because nothing ends a process that waits for it. Nothing here waits; the exchange polls.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from time import monotonic

from swiprctl.errors import CannotOpen, IsDirectory, SwiprError, TooLarge, cannot_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from swiprctl.mounts import SlowMounts
    from swiprctl.opener import Opening
    from swiprctl.pixels import Pixels

    Input = str | os.PathLike[str] | bytes | bytearray | memoryview | int | BinaryIO | Pixels

MAX_STREAM = 64 << 20
"""Bytes of an image that comes through a pipe or from memory."""

DIRECTORY = "it is a directory"
"""What a CannotOpen says of one."""

_CHUNK = 1 << 20
LOOK_AGAIN = 1.0  # seconds for which the list of mounts is taken as current
_TYPES = b"9p afs autofs beegfs ceph cifs coda davfs fuse fuseblk gfs2 lustre ncpfs nfs nfs4 ocfs2"
_TYPES += b" orangefs pvfs2 smb3 smbfs virtiofs"
_SLOW = (*(one + b" " for one in _TYPES.split()), b"fuse.")  # file systems with a server
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class NoDescriptor(CannotOpen):
    """No descriptor is left, for this process or on the host; closing an image gives one back."""


class Found(str):
    """A path that a walk came upon, and the file there, open already, or why it is not.

    `opened` is a descriptor, which an Image takes over; or an error, which it raises; or None: the
    file is to be opened by its path.
    """

    __slots__ = ("opened",)

    def __init__(self, _: str) -> None:
        self.opened: int | SwiprError | None = None

    def take(self) -> int | None:
        """Give the descriptor, once, or None.

        Raises:
            SwiprError: there is none, for this reason.
        """
        opened, self.opened = self.opened, None
        if isinstance(opened, SwiprError):
            raise opened
        return opened

    def close(self) -> None:
        """Close the file, where nobody is to be asked about it. Can be called again."""
        opened, self.opened = self.opened, None
        if isinstance(opened, int):
            os.close(opened)


class Image:
    """One image's bytes behind one descriptor, which this object owns until `close()`.

    Attributes:
        descriptor: the descriptor to pass to the daemon; None while a stream is being read.
        stream: the descriptor to poll and `pump()` first; None once it is read.
        head: some of its first bytes, if they were read here.
    """

    __slots__ = ("_memfd", "_opening", "_size", "descriptor", "head", "stream")

    def __init__(self, descriptor: int | None, stream: int | None = None) -> None:
        self.descriptor = descriptor
        self.stream = stream
        self.head = b""
        self._opening: Opening | None = None
        self._memfd = -1
        self._size = 0

    @classmethod
    def open(cls, source: Input) -> Image:
        """Take a path, bytes, a descriptor (which stays the caller's), a binary file object, or
        pixels: an array of uint8 or a Pillow image, see `pixels.file_of`.

        A file object that is not a plain file at its beginning is read to its end here, however
        long that takes; give its `fileno()` to have that done under the request's deadline.

        Raises:
            NoDescriptor: too many are open.
            CannotOpen: there is no such file, or no permission, or it cannot hold an image.
            TooLarge: bytes, or what a file object holds, exceed `MAX_STREAM`.
            TypeError: the source is none of these.
            ValueError: an array has not the shape of a picture.
        """
        if isinstance(source, int):
            return cls._named(source)
        if isinstance(source, Found) and (found := source.take()) is not None:
            return cls._own(found)
        if isinstance(source, str | os.PathLike):
            path = os.fspath(source)
            if not isinstance(path, str):
                raise TypeError("a path is text; bytes are taken for the image itself")
            return cls._named(path)
        from swiprctl.objects import descriptor_of, pieces

        descriptor = descriptor_of(source, may_hang)
        if descriptor is not None:
            return cls._named(descriptor)
        image = cls(None)
        try:
            image._make_memfd()
            for piece in pieces(source, MAX_STREAM):
                image._add(piece)
            image._seal()
        except BaseException:
            image.close()
            raise
        return image

    @classmethod
    def _named(cls, source: str | int) -> Image:
        """Open a path or a descriptor: here, or in another process if that may hang."""
        if not may_hang(source):
            return cls._direct(source)
        from swiprctl.opener import Opening

        image = cls(None)
        try:
            # Copied: closing such a file may hang, too, so this process must not have it.
            image._opening = Opening(lambda: cls._direct(source, copy=True), source)
        except OSError as error:
            raise _cannot_open(error) from error
        image.stream = image._opening.fileno()
        return image

    @classmethod
    def _direct(cls, source: str | int, *, copy: bool = False) -> Image:
        try:
            if isinstance(source, int):
                descriptor = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 0)
            else:
                # O_NONBLOCK: a FIFO without a writer must not hold up the others.
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
                descriptor = os.open(source, flags)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise CannotOpen("not an open descriptor") from error
            raise _cannot_open(error) from error
        except (ValueError, OverflowError) as error:
            why = "not an open descriptor" if isinstance(source, int) else f"not a path: {error}"
            raise CannotOpen(why) from error
        return cls._own(descriptor, copy=copy)

    @classmethod
    def _own(cls, descriptor: int, *, copy: bool = False) -> Image:
        """Own a descriptor of any kind; with `copy`, files are read as pipes are."""
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISREG(mode):
                # `{ read line; swiprctl predict -; } <file` means what is left of the file.
                if not copy and os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
                    return cls(descriptor)
            elif stat.S_ISDIR(mode):
                raise IsDirectory(DIRECTORY)
            elif os.isatty(descriptor):
                raise CannotOpen("it is a terminal")
            elif not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
                raise CannotOpen("it is a device")
            image = cls(None, descriptor)
            image._make_memfd()
        except CannotOpen:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            raise _cannot_open(error) from error
        return image

    def pump(self) -> bool:
        """Read what the stream has, once poll(2) says so; True when its end was reached.

        Raises:
            CannotOpen: it cannot be read.
            TooLarge: it has more than `MAX_STREAM`.
        """
        if self._opening is not None:
            opening, self._opening, self.stream = self._opening, None, None
            image = Image._own(opening.finish())
            self.descriptor, self.stream = image.descriptor, image.stream
            self._memfd = image._memfd
        if self.stream is None:
            return True
        try:
            data = os.read(self.stream, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _cannot_open(error) from error
        if data:
            self.head = self.head or data[:4096]
            self._add(memoryview(data))
            return False
        os.close(self.stream)
        self.stream = None
        self._seal()
        return True

    def copied(self) -> int:
        """Copy a file into memory, and return a descriptor of the copy; a pipe's own descriptor.

        The file stays open, as closing it may hang.

        Raises:
            OSError: it cannot be read.
        """
        assert self.stream is not None
        if not stat.S_ISREG(os.fstat(self.stream).st_mode):
            return self.stream
        while data := os.read(self.stream, _CHUNK):
            self._add(memoryview(data))
        self._seal()
        assert self.descriptor is not None
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return self.descriptor

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

    @property
    def late(self) -> str:
        """Say why the image is late."""
        if self._opening is not None:
            return "its file system did not give it"
        return "the pipe did not come to its end"

    def close(self) -> None:
        """Close what is open. Can be called again."""
        if self._opening is not None:
            self._opening.close()
            self._opening = self.stream = None
        for descriptor in (self.descriptor, self.stream):
            if descriptor is not None:
                os.close(descriptor)
        self.descriptor = self.stream = None
        if self._memfd >= 0:
            os.close(self._memfd)
            self._memfd = -1

    def _make_memfd(self) -> None:
        try:
            self._memfd = os.memfd_create("swipr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise _cannot_open(error, "no memory to hold it: ") from error

    def _add(self, data: memoryview) -> None:
        self._size += len(data)
        if self._size > MAX_STREAM:
            raise TooLarge(f"more than {MAX_STREAM} bytes, the limit for what is not a file")
        try:
            while data:
                data = data[os.write(self._memfd, data) :]
        except OSError as error:
            raise CannotOpen(f"no memory to hold it: {error.strerror}") from error

    def _seal(self) -> None:
        """Make the bytes unchangeable, where the kernel lets us."""
        try:
            fcntl.fcntl(self._memfd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            pass  # EBUSY: it has pinned a page, seen on a busy host. Workers only read
        self.descriptor, self._memfd = self._memfd, -1


def _cannot_open(error: OSError, doing: str = "") -> CannotOpen:
    text = f"{doing}{error.strerror or error}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return NoDescriptor(text)
    return cannot_open(error, text)


_seen: tuple[float, SlowMounts | None] = (float("-inf"), None)


def may_hang(source: str | int) -> bool:
    """Whether a path or descriptor is of a file system whose server may never answer."""
    global _seen
    now = monotonic()
    if now >= _seen[0] + LOOK_AGAIN:
        _seen = now, _look()
    return _seen[1] is not None and _seen[1].hold(source)


def _look() -> SlowMounts | None:
    try:
        with open("/proc/self/mountinfo", "rb", buffering=0) as file:
            lines = file.readall().split(b"\n")
    except OSError:
        return None
    slow = [line for line in lines if line.partition(b" - ")[2].startswith(_SLOW)]
    # Most hosts have such mounts below these, and no images.
    slow = [line for line in slow if b" /proc/" not in line and b" /sys/" not in line]
    if not slow:
        return None
    from swiprctl.mounts import SlowMounts

    return SlowMounts(slow)
