"""Work whose records go to a file, and that can be interrupted and gone on with.

Two ends of one line: `Remaining` lets through the inputs that the file has no record of, and
`FileWriter`, the sink behind the client, writes the others' records. Answers come in the order of
the inputs, each once; so what is known of those under way is a queue between the two.
"""

from __future__ import annotations

from collections import deque

from swiprctl.errors import BadImage, CannotWrite, SwiprError, TooLarge
from swiprctl.inputs import Found, may_hang
from swiprctl.journal import AGAIN, FAILURE, HEADER, NO_ROW, ROW, Entry
from swiprctl.output import Writer, say
from swiprctl.outputfile import OutputFile
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprctl.rows import Prediction
from swiprctl.states import Hangs, Inquiry, state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from swiprctl.journal import State
    from swiprctl.output import Format

_MOST_HUNG = 3  # files in a row: then none is asked for its state there any more
_SLICE = 1024  # inputs left out, behind which answers are looked for
_LASTING = BadImage, TooLarge  # an unchanged file fails so again


def begin(
    name: str,
    options: str,
    inputs: Iterable[str | int | None],
    describe: Callable[[], dict[str, object]],
    *,
    resume: bool,
    force: bool,
    patience: float | None = None,
) -> Remaining:
    """Open a file for the records of inputs; arguments as for `OutputFile` and `Remaining`.

    Raises:
        CannotWrite: it cannot be opened or gone on with.
        SwiprError: the model cannot be described.
    """
    file = OutputFile(name, options, resume=resume, force=force)
    try:
        return Remaining(inputs, file, describe, patience)
    except BaseException:
        file.close()
        raise


class Remaining:
    """The inputs that have no record yet, as they come; for `Client.predict_many`.

    Args:
        inputs: all of them; paths, or 0 for standard input, or None where nothing has come yet.
        file: has the records of those that have one.
        describe: describes the model that serves; asked if there are records.
        patience: seconds for which the server of a file system may keep silent; 10 by default.

    Attributes:
        file: the same.
        labels: of the model that serves, if there are records.
        present: how many have one.
        under_way: of each that was let through and is not answered yet, what its record is made
            from: the file as it was before it was opened, so that a later change is seen.
    """

    def __init__(
        self,
        inputs: Iterable[str | int | None],
        file: OutputFile,
        describe: Callable[[], dict[str, object]],
        patience: float | None = None,
    ) -> None:
        self._all = inputs
        self._patience = DEFAULT_TIMEOUT if patience is None else patience
        self._hung = 0
        self._inquiry: tuple[str | int, Inquiry] | None = None  # about the next input
        self._waits = False  # for the inputs
        self._inputs = iter(inputs)
        self.file = file
        described = {} if file.empty else describe()
        self._model = described.get("model")
        labels = described.get("labels")
        self.labels = tuple(map(str, labels)) if isinstance(labels, list) else ()
        self.present = 0
        self.under_way: deque[Entry] = deque()

    def fileno(self) -> int:
        """Give what to poll after a None; -1: nothing, ask again at once."""
        if self._inquiry is not None:
            return self._inquiry[1].fileno()
        return self._all.fileno() if self._waits else -1  # type: ignore[attr-defined]

    @property
    def total(self) -> int | None:
        """How many inputs have no record, so far; None as long as nobody knows how many come."""
        everything = getattr(self._all, "total", None)
        if isinstance(self._all, list):
            everything = len(self._all)
        return everything - self.present if isinstance(everything, int) else None

    @property
    def skipped(self) -> int:
        """How many files a walk has come upon that are no images."""
        skipped = getattr(self._all, "skipped", 0)
        return skipped if isinstance(skipped, int) else 0

    def __iter__(self) -> Iterator[str | int | None]:
        return self

    def __next__(self) -> str | int | None:
        while True:
            if self._inquiry is None:
                following = next(self._inputs)
                self._waits = following is None
                if following is None:
                    return None
                source, state = following, self._state(following)
            if self._inquiry is not None:
                source, inquiry = self._inquiry
                try:
                    state = inquiry.result()
                    self._hung = 0
                except BlockingIOError:
                    return None
                except Hangs:
                    state = None
                    self._hung += 1
                self.close()
            if not self._has_record(source, state):
                return source
            self.present += 1
            if isinstance(source, Found):
                source.close()
            if self.present % _SLICE == 0:
                return None  # answers may have come meanwhile

    def close(self) -> None:
        """Give up what is being asked about an input. Can be called again."""
        if self._inquiry is not None:
            self._inquiry[1].close()
            self._inquiry = None

    def _state(self, source: str | int) -> State | None:
        """Give the state of an input's file, or begin to ask for it where that may hang."""
        opened = getattr(source, "opened", None)  # a walk's, which has opened it, or has failed to
        if isinstance(opened, int):
            return state_of(opened)
        if isinstance(source, int) or opened is not None:
            return None
        if not may_hang(source):
            return state_of(source)
        if self._hung < _MOST_HUNG:
            try:
                self._inquiry = source, Inquiry(source, self._patience)
            except OSError:
                pass  # the client says why
        return None

    def _has_record(self, source: str | int, state: State | None) -> bool:
        """Whether an input has its record; if not, it is under way now."""
        path = "-" if source == 0 else str(source)
        has_record, replaces = self.file.answered.claim(path, state, self._model)
        if not has_record:
            self.under_way.append(Entry(kind=AGAIN, path=path, state=state, replaces=replaces))
        return has_record


class FileWriter:
    """The last sink, in place of a `Writer`: puts records into a file.

    Without `failures`, an image that fails has no record, and is asked for again when the work is
    gone on with. What it had before stays, unless it is known to be wrong: the file is no image any
    more, or is too large. With them it has one, which stands if it would fail again (for these two
    reasons) for as long as the file is unchanged.

    Args:
        format, header, failures, ask: as a `Writer` takes them.
        remaining: the inputs that are answered, and the file, which is this sink's to close.

    Raises:
        CannotWrite: the file's header is of other labels.
    """

    def __init__(
        self,
        format: Format,
        *,
        remaining: Remaining,
        header: bool,
        failures: bool,
        ask: Callable[[], Iterable[str]],
    ) -> None:
        file = self._file = remaining.file
        self._remaining = remaining
        self._finished = False
        self._records: list[bytes] = []
        self._header = header and not file.header
        self._writer = Writer(
            format,
            self._records.append,
            header=header,
            failures=failures,
            ask=ask,
            labels=remaining.labels if file.header else None,
        )
        if file.header and format.header(remaining.labels) != file.header:
            raise CannotWrite(
                f"{file.name}: its header has the labels of another model than the one that serves"
                " now; --force begins anew"
            )

    def take(self, path: str, answer: Prediction | SwiprError) -> SwiprError | None:
        """Write the record of an answer; gives the failure that it is, or has become.

        Raises:
            WriteFailed: it cannot be written; the file can be gone on with.
        """
        entry = self._remaining.under_way.popleft()
        failure = self._writer.take(path, answer)
        records = self._records.copy()
        self._records.clear()
        if self._header and records:
            self._file.append(Entry(kind=HEADER), records.pop(0))
            self._header = False
        if isinstance(answer, Prediction) and failure is None:
            self._file.append(entry.answered(ROW, answer.model), records[0])
        elif records:
            kind = FAILURE if isinstance(failure, _LASTING) else AGAIN
            self._file.append(entry.answered(kind), records[0])
        elif entry.replaces is not None and isinstance(failure, _LASTING):
            self._file.answered.void(entry.replaces)
        return failure

    def drop(self, path: str, prediction: Prediction) -> None:  # noqa: ARG002 - the entry has it
        """Remember that an answer has no record, so that it is not asked for again.

        Raises:
            WriteFailed: as for `take`.
        """
        entry = self._remaining.under_way.popleft()
        self._file.append(entry.answered(NO_ROW, prediction.model), b"")

    def finish(self) -> None:
        """Leave the file as one run would have.

        Raises:
            WriteFailed: it cannot be written; it can be gone on with.
        """
        self._file.finish()
        self._finished = True

    def close(self) -> None:
        """Close the file, and say how to go on if the work did not come to its end."""
        self._remaining.close()
        self._file.close()
        if not self._finished and self._file.rows:
            rows = f"{self._file.rows} row" + "s" * (self._file.rows > 1)
            say(f"{self._file.name}: it has {rows} so far; --resume goes on with it")
