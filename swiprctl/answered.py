"""Which inputs have their record already, in 21 bytes each (and some 90 more for a moment).

Kept of an entry of the journal is a hash of its path and where its line is; that line is read again
before anything is left out for it, so that two paths with one hash are no mistake.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

from swiprctl.journal import AGAIN, HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from swiprctl.journal import Entry, State

_FREE, _CLAIMED, _VOID = range(3)
_MASK = (1 << 64) - 1


class Answered:
    """The entries of a journal, by their inputs.

    An input that is named twice has two records, as without a file: each entry is claimed by one
    input, and an input claims one entry.

    Args:
        read: gives the entry whose line begins at an offset of the journal.
    """

    def __init__(self, read: Callable[[int], Entry]) -> None:
        self._read = read
        self._hashes = array("Q")
        self._offsets = array("Q")
        self._numbers: array[int] | None = None  # of the entries, in the hashes' order
        self._states = bytearray()

    def add(self, entry: Entry, offset: int) -> None:
        """Take the next entry of the journal, which is at this offset. All are added first.

        Raises:
            ValueError: it says that it replaces one that does not come before it.
        """
        if entry.replaces is not None:
            if entry.replaces >= len(self._states):
                raise ValueError(entry.replaces)
            self._states[entry.replaces] = _VOID
        self._hashes.append(hash(entry.path) & _MASK)
        self._offsets.append(offset)
        self._states.append(_CLAIMED if entry.kind == HEADER else _FREE)

    def claim(self, path: str, state: State | None, model: object) -> tuple[bool, int | None]:
        """Claim an input's entry.

        Args:
            path: the input, as it is named.
            state: of the file now; None where it is no plain file.
            model: the id of the model that serves now.

        Returns:
            whether it has its record, made from this state by this model; and if not, the number
            of the entry whose record the new one replaces, or None. That record is not void yet:
            see `void`.
        """
        stale = None
        for number in self._of(path):
            entry = self._read(self._offsets[number])
            if entry.path != path:
                continue
            # A failure is of no model: what is no image, is none for the next one either.
            same = state is not None and entry.state == state and entry.model in (model, "")
            if same and entry.kind != AGAIN:
                self._states[number] = _CLAIMED
                return True, None
            stale = number if stale is None else stale
        if stale is not None:
            self._states[stale] = _CLAIMED
        return False, stale

    def void(self, number: int) -> None:
        """Have an entry's record go: another one is there in its place, or there can be none."""
        self._states[number] = _VOID

    def is_void(self, number: int) -> bool:
        """Whether an entry's record is to go. Entries made since all were added are not."""
        return number < len(self._states) and self._states[number] == _VOID

    @property
    def any(self) -> bool:
        """Whether there is any entry."""
        return bool(self._states)

    @property
    def any_void(self) -> bool:
        """Whether any is to go."""
        return _VOID in self._states

    def _of(self, path: str) -> list[int]:
        """Give the numbers of the entries that may be a path's and that nobody has claimed."""
        if self._numbers is None:
            order = sorted(range(len(self._hashes)), key=self._hashes.__getitem__)
            self._numbers = array("I", order)
            self._hashes = array("Q", map(self._hashes.__getitem__, order))
        wanted = hash(path) & _MASK
        found = []
        place = bisect_left(self._hashes, wanted)
        while place < len(self._hashes) and self._hashes[place] == wanted:
            if self._states[self._numbers[place]] == _FREE:
                found.append(self._numbers[place])
            place += 1
        return found
