"""The images below folders, found by their first bytes, while the first are being asked about.

In the order of the names in each folder, a subfolder's content in the place of its name. Paths and
lists of paths may be mixed with folders: what is named is asked about, whatever it is; what a walk
comes upon is taken if it begins as an image does, and counted otherwise. It is opened once: the
descriptor that was read for that goes on to the daemon.

A file system whose server may never answer is walked by another process, see distant.py. However
many files there are, there are in memory the names of the folders on the way that are still to
come, and of each no more than a listing holds at a time, see folder_names.py.
"""

from __future__ import annotations

import errno
import os
import stat
from time import sleep

from swiprctl.errors import CannotOpen
from swiprctl.folder_names import Listing
from swiprctl.inputs import Found, may_hang
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprctl.signatures import HEAD, begins_an_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Source = str | int | None

_SLICE = 1 << 10  # files that are looked at without a pause
_PAUSE = 0.01  # seconds for which a descriptor is waited for
_PAUSES = 1000
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class _ShortOfDescriptors(Exception):
    """None is left for now."""


class Walk:
    """Inputs for `Client.predict_many`: the roots, and the images in those that are folders.

    Iterating gives a path, a descriptor where the roots have one, or None for "nothing yet"; then
    `fileno()` is what to poll, or -1: ask again at once.

    Args:
        roots: paths and descriptors; None as in `Client.predict_many`, if they have a `fileno()`.
        hidden: take names that begin with a dot, too.
        follow: go where symbolic links lead. Those among the roots are followed in any case.
        one_file_system: stay out of what is mounted below a root.
        patience: seconds for which the server of a file system may keep silent; 10 by default.

    Attributes:
        skipped: files that were come upon and are no images.
        given: inputs that have been given.
        where: the path that is being looked at.
    """

    def __init__(
        self,
        roots: Iterable[Source],
        *,
        hidden: bool = False,
        follow: bool = False,
        one_file_system: bool = False,
        patience: float | None = None,
    ) -> None:
        self._roots = roots
        self._roots_left = len(roots) if isinstance(roots, list | tuple) else None
        self._hidden = hidden
        self._follow = follow
        self._one_file_system = one_file_system
        self._patience = DEFAULT_TIMEOUT if patience is None else patience
        self._near = False  # whether everything is to be looked at here, even if that may hang
        self._stack: list[Listing] = []
        self._distant = False
        self._watch = -1
        self._short: tuple[int, int, int] = (0, 0, 0)
        self.skipped = 0
        self.given = 0
        self.where = ""

    def fileno(self) -> int:
        """Give what to poll after a None; -1: nothing, ask again at once."""
        return self._watch

    @property
    def total(self) -> int | None:
        """How many inputs there are at most; None as long as nobody can know."""
        if self._roots_left != 0 or self._distant:
            return None
        if any(folder.more or folder.deeper for folder in self._stack):
            return None
        return self.given + sum(len(folder.names) for folder in self._stack)

    def __iter__(self) -> Iterator[Source]:
        for root in self._roots:
            if root is None:
                self._watch = self._roots.fileno()  # type: ignore[attr-defined]
                yield None
                self._watch = -1
                continue
            if self._roots_left:
                self._roots_left -= 1
            if isinstance(root, str):
                yield from self._root(root)
            else:
                self.given += 1
                yield root
        self._roots_left = 0

    def resumed(self, top: str, names: list[str]) -> Iterator[Source]:
        """Walk a root here, even if that may hang; from behind a path, by its names below the root.

        Pauses before each folder and behind each file, so that `where` can be watched.
        """
        self._near = True
        if not names:
            yield from self._root(top)
            return
        stack: list[Listing] = []
        for name in names:
            stack.append(Listing(stack[-1].below(stack[-1].last) if stack else top, name))
            self.where = stack[-1].path
            yield None
            try:
                stack[-1].identify(os.stat(self.where))
            except OSError:
                pass  # it has gone: there is nothing in it any more
        yield from self._walk(stack)

    def _root(self, path: str) -> Iterator[Source]:
        self.where = path
        if not self._near and may_hang(path):
            yield from self._walk_distant(path)
            return
        if self._near:
            yield None
        try:
            folder = stat.S_ISDIR(os.stat(path).st_mode)
        except (OSError, ValueError):
            folder = False  # why it cannot be opened will be seen when it is asked about
        if folder:
            yield from self._walk([Listing(path)])
        else:
            self.given += 1
            yield path

    def _walk(self, stack: list[Listing]) -> Iterator[Source]:
        """Give what is in the last of these folders, then in those before."""
        self._stack = stack
        since_pause = 0
        while stack:
            folder = stack[-1]
            if not folder.names:
                if folder.more:
                    yield from self._read(folder)
                else:
                    stack.pop()
                continue
            name = folder.names.pop()
            folder.last = name
            self.where = path = folder.below(name)
            if not self._near and may_hang(path):
                folder.deeper.discard(name)
                yield from self._walk_distant(path)
                continue
            if self._near:
                yield None
            if name in folder.deeper:
                folder.deeper.discard(name)
                if self._is_folder(path):
                    stack.append(Listing(path))
                    continue
            try:
                source = self._look(path)
            except _ShortOfDescriptors:
                folder.names.append(name)
                yield None
                continue
            if source is not None:
                self.given += 1
                yield source
                continue
            self.skipped += 1
            since_pause += 1
            if since_pause >= _SLICE:
                since_pause = 0
                yield None  # answers may have come meanwhile

    def _is_folder(self, path: str) -> bool:
        if not self._follow:
            return True  # as its entry said
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except OSError:
            return False

    def _look(self, path: str) -> str | None:
        """Open a file that is to be an image; None if it is none.

        Raises:
            _ShortOfDescriptors: later, perhaps.
        """
        try:
            descriptor = os.open(path, _READ if self._follow else _READ | os.O_NOFOLLOW)
        except OSError as error:
            if self._waits_for(error):
                raise _ShortOfDescriptors from error
            # Between its listing and now it has become a link, which nobody asked to follow.
            return None if error.errno == errno.ELOOP and not self._follow else path
        try:
            image = begins_an_image(os.pread(descriptor, HEAD, 0))
        except OSError:
            os.close(descriptor)
            return path  # it is asked about, and why it cannot be read is said
        if not image:
            os.close(descriptor)
            return None
        found = Found(path)
        found.opened = descriptor
        return found

    def _read(self, folder: Listing) -> Iterator[Source]:
        """Read the next names of a folder."""
        self.where = folder.path
        if self._near:
            yield None
        flags = _READ | os.O_DIRECTORY
        if len(self._stack) > 1 and not self._follow:
            flags |= os.O_NOFOLLOW
        while True:
            try:
                descriptor = os.open(folder.path, flags)
                break
            except OSError as error:
                if not self._waits_for(error):
                    folder.more = False
                    yield self._failed(folder.path, error.strerror or str(error))
                    return
            yield None
        try:
            if self._enters(folder, descriptor):
                yield from folder.read(descriptor, hidden=self._hidden, follow=self._follow)
            else:
                folder.more = False
                if (loop := self._loop(folder)) is not None:
                    yield self._failed(folder.path, f"a loop of links: it leads back to {loop}")
        except OSError as error:
            folder.more = False
            yield self._failed(folder.path, error.strerror or str(error))
        finally:
            os.close(descriptor)

    def _enters(self, folder: Listing, descriptor: int) -> bool:
        if not (self._follow or self._one_file_system):
            return True
        folder.identify(os.fstat(descriptor))
        if self._one_file_system and folder.device != self._stack[0].device:
            return False
        return self._loop(folder) is None

    def _loop(self, folder: Listing) -> str | None:
        """Give the folder above that this one is, by a link; None if it is none."""
        return next((one.path for one in self._stack[:-1] if one.is_same(folder)), None)

    def _failed(self, path: str, why: str) -> Found:
        self.given += 1
        found = Found(path)
        found.opened = CannotOpen(why)
        return found

    def _waits_for(self, error: OSError) -> bool:
        """Whether to try again: an answer gives a descriptor back."""
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            return False
        given, skipped, pauses = self._short
        if (given, skipped) != (self.given, self.skipped):
            pauses = 0
        self._short = self.given, self.skipped, pauses + 1
        sleep(_PAUSE)
        return pauses < _PAUSES

    def _walk_distant(self, path: str) -> Iterator[Source]:
        """Have another process walk a root or what is below a folder: nothing here may hang."""
        from swiprctl.distant import DistantWalk

        def again() -> Walk:
            return Walk(
                [path],
                hidden=self._hidden,
                follow=self._follow,
                one_file_system=self._one_file_system,
            )

        distant = DistantWalk(again, path, self._patience)
        skipped = self.skipped
        self._distant = True
        for source in distant:
            self.skipped = skipped + distant.skipped
            if source is None:
                self._watch = distant.fileno()
                yield None
                self._watch = -1
            else:
                self.given += 1
                yield source
        self.skipped = skipped + distant.skipped
        self._distant = False
