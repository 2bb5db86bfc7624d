"""The names in one folder, in their order and in bounded memory.

Of more than `PIECE` names, the first so many are kept, and the folder is read again for the next
ones. So a folder of a million files is read eight times, which takes a few seconds of the minutes
that its images take.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1 << 17
"""Names that are kept: some 12 MB."""

_SLICE = 1 << 10  # names that are read without a pause


class Listing:
    """One folder's names that are still to come: those that have been read, the next one last.

    Attributes:
        path: where the folder is.
        last: the name that was taken last; those up to it are left out.
        names: those read and not taken yet.
        deeper: those of them that are folders, or links.
        more: whether there are others behind them, to be read.
        device: the number of its file system, once it is identified.
    """

    __slots__ = ("_inode", "deeper", "device", "last", "more", "names", "path")

    def __init__(self, path: str, last: str = "") -> None:
        self.path = path
        self.last = last
        self.names: list[str] = []
        self.deeper: set[str] = set()
        self.more = True
        self.device = -1
        self._inode = -1

    def below(self, name: str) -> str:
        """Give the path of a name in it."""
        return self.path + name if self.path.endswith("/") else f"{self.path}/{name}"

    def identify(self, found: os.stat_result) -> None:
        """Take in which folder this is."""
        self.device, self._inode = found.st_dev, found.st_ino

    def is_same(self, other: Listing) -> bool:
        """Whether both are identified, as one folder."""
        return self._inode >= 0 and (self.device, self._inode) == (other.device, other._inode)

    def read(self, descriptor: int, *, hidden: bool, follow: bool) -> Iterator[None]:
        """Read the next names, of files and folders, and of links to `follow`. Pauses now and then.

        Args:
            descriptor: the folder, open.
            hidden: take names that begin with a dot, too.

        Raises:
            OSError: it cannot be read.
        """
        names: list[str] = []
        deeper: set[str] = set()
        end: str | None = None  # where the names that are kept end, if there are more
        with os.scandir(descriptor) as entries:
            for number, entry in enumerate(entries, 1):
                if number % _SLICE == 0:
                    yield None
                name = entry.name
                if name <= self.last or (end is not None and name >= end):
                    continue
                if name.startswith(".") and not hidden:
                    continue
                try:
                    if entry.is_symlink():
                        if not follow:
                            continue
                        deeper.add(name)
                    elif entry.is_dir():
                        deeper.add(name)
                    elif not entry.is_file():
                        continue
                except OSError:
                    pass  # the file system does not say, nor does lstat(2); open(2) will say why
                names.append(name)
                if len(names) >= PIECE + PIECE // 4:
                    names.sort()
                    end = names[PIECE]
                    del names[PIECE:]
        names.sort(reverse=True)
        self.names = names
        self.deeper = deeper if end is None else deeper.intersection(names)
        self.more = end is not None
