"""The client as a library: `Client().predict(…)`, and its stream of many.

Blocking, one connection, no threads. Errors are those of errors.py and no others. What is in
flight, resent and given up is the exchange's; this module turns inputs into jobs, keeps a bounded
window of them, and puts the answers back in order. It also sees to it that a client is used by one
process and by one thread at a time.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from _weakref import ref
from collections import deque

from swiprctl.address import choose
from swiprctl.errors import SwiprError, TryLater, UsageError
from swiprctl.exchange import Exchange
from swiprctl.inputs import Image, NoDescriptor
from swiprctl.jobs import START_ALLOWANCE, Job, Window
from swiprctl.protocol import DEFAULT_TIMEOUT, MAX_TIMEOUT
from swiprctl.rows import KnownLabels, Prediction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self, TypeVar

    from swiprctl.inputs import Input

    _Input = TypeVar("_Input", bound=Input)


class SingleUse:
    """A lock that is never waited for: a second caller is refused, as two callers would read each
    other's answers."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                "this Client is being used by another thread: give each thread a Client of its own"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Client:
    """A connection to the daemon, made (and made anew) when it is needed.

    A process that is forked from this one gets a connection of its own when it first asks; what is
    under way stays its parent's. Threads may use a client one after the other; one that does while
    another waits for its answer gets a UsageError, and the other its answer. Give each its own.

    Args:
        socket_path: where the daemon listens; by default `$SWIPR_SOCKET`, the system's socket,
            or the user's own.
        timeout: seconds each request may take from start to end; by default the daemon's 10.
        autostart: whether to start a daemon where none listens on the user's own socket.
        notify: called once, with a line for the user, if the first answer takes long.
        model: the name of a system's model, or a model's folder, which a daemon of the user's own
            serves; in place of `socket_path`. A text with a slash in it is a folder, and so is
            any `pathlib.Path`.
        trace: called with a line each time that a request has to be sent again, and why.
        labels: whether each prediction is to have its model's labels and thresholds. They come
            with the first answer of each model, once. By default it has them wherever the daemon
            tells them so; True also asks an older daemon for them, and has an error where they
            cannot be known. `model()` tells those of the model that serves by then, after a
            reload perhaps another.
        named_errors: whether the text of an input's error begins with the input's name, and `path`
            has it; without, as for a program that prints the name itself, neither.

    Raises:
        UsageError: the socket, model or timeout cannot be meant.
        CannotOpen: there is no model in the folder.
        NoDaemon: no daemon serves the model that was named.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = None,
        autostart: bool = True,
        notify: Callable[[str], None] | None = None,
        model: str | os.PathLike[str] | None = None,
        trace: Callable[[str], None] | None = None,
        labels: bool | None = None,
        named_errors: bool = True,
    ) -> None:
        self._timeout = _checked(timeout)
        self._labels = None if labels is False else KnownLabels()
        self._labels_needed = labels is True
        self._named_errors = named_errors
        if model is not None and not isinstance(model, str):
            model = os.path.join(".", model)
        if socket_path is not None:
            socket_path = os.fspath(socket_path)
        self._exchange = Exchange(
            choose(socket_path, model), autostart=autostart, notify=notify, trace=trace
        )
        self._single_use = SingleUse()
        self._abandoned: list[Job] = []  # of streams that are given up, to be forgotten
        _living[:] = [one for one in _living if one() is not None] + [ref(self)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The client can be used again, over a new one."""
        with self._single_use:
            self._exchange.close("the client was closed before the answer came")

    @property
    def socket_path(self) -> str:
        """Where the daemon listens."""
        return self._exchange.address.path

    def predict(self, source: Input, *, timeout: float | None = None) -> Prediction:
        """Ask for one image.

        Args:
            source: a path; the bytes of an image file; a binary file object; a descriptor; a Pillow
                image; or an array of uint8, such as numpy's, of shape [h, w, 3] in the order red,
                green, blue (OpenCV's is the reverse: `image[..., ::-1]`), [h, w, 4] with an alpha
                that is dropped, or [h, w] of grey levels.
                Pixels are answered as the same pixels in a PNG are, bit for bit: they go as an
                uncompressed TIFF. If the EXIF of a Pillow image still has an orientation, it goes
                along, so that `Image.open(path)` is answered as `path` is; an array has none.
            timeout: seconds from start to end; by default the client's.

        Raises:
            CannotOpen: the file cannot be opened or read; an OSError, such as FileNotFoundError.
            BadImage: it is no image, or cannot be decoded whole.
            TooLarge: it has too many bytes or pixels.
            DeadlineExceeded: no answer came in time; a TimeoutError.
            SwiprError: whatever else became of it; errors.py has the tree.
            TypeError, ValueError: the source is none of the above; an array of another shape.
        """
        _checked(timeout)
        return self._prediction(self._run(lambda: self._job(source, timeout), source))

    def predict_many(
        self, sources: Iterable[_Input | None]
    ) -> Iterator[tuple[_Input, Prediction | SwiprError]]:
        """Ask for many images, and give (input, answer or error) for each, in their order.

        The inputs are what `predict` takes. At most `Window.LARGEST` are under way, and only they
        are open. If `sources` has a `fileno()`, its iterator may give None for "nothing yet":
        earlier answers then come out while it is polled. Any other iterable is waited for.

        Raises:
            NoDaemon: nobody listens (any more), and no daemon could be started.
            Forbidden: the user may not open the socket.
            TypeError: this is one input, not several.
        """
        if not isinstance(sources, list):
            from swiprctl.objects import refuse_one

            refuse_one(sources)
        return self._stream(sources)

    def _stream(
        self, sources: Iterable[_Input | None]
    ) -> Iterator[tuple[_Input, Prediction | SwiprError]]:
        window = Window(DEFAULT_TIMEOUT if self._timeout is None else self._timeout)
        under_way: deque[tuple[_Input, Job]] = deque()
        iterator = iter(sources)
        fileno = getattr(sources, "fileno", None)
        ended = False
        try:
            while True:
                while under_way and (outcome := under_way[0][1].outcome) is not None:
                    source, job = under_way.popleft()
                    answer = self._answer(outcome, source)
                    if isinstance(answer, Prediction):
                        window.learn(answer.queued, job.resent)
                    elif isinstance(answer, TryLater):
                        window.learn(0.0, 1)
                    elif isinstance(source, int):
                        answer = self._explained(answer, source, job)
                    yield source, answer
                watch = -1
                if not ended and len(under_way) < window.size:
                    try:
                        following = next(iterator)
                    except StopIteration:
                        ended = True
                    else:
                        if following is not None:
                            with self._single_use:
                                under_way.append((following, self._begin(following)))
                        elif fileno is not None:
                            watch = fileno()
                        else:
                            raise TypeError("None is no input")
                if ended and not under_way:
                    return
                full = ended or watch >= 0 or len(under_way) >= window.size
                with self._single_use:
                    self._forget_abandoned()
                    self._exchange.step(wait=full, watch=watch)
        finally:
            self._abandoned += (job for _, job in under_way)
            # The garbage collector may close this generator, in any thread: if the client is in
            # use meanwhile, its next use forgets these jobs.
            try:
                with self._single_use:
                    self._forget_abandoned()
            except UsageError:
                pass

    def model(self) -> dict[str, object]:
        """Describe the model that serves, once one does.

        Returns:
            A map of these fields; a newer daemon may have more.

            name: str, the model's name in model.toml.
            model: str, its id: the name, "@" and 12 digits that change with its answers.
            architecture: str, as in model.toml.
            labels: list of str, in the order of the probabilities.
            thresholds: list of float, one a label, or None: see swipr-model(5).
            activation: str, "softmax", "sigmoid", "log_softmax" or "none".
            input: map: resize (int, pixels, or None), edge (str, which edge that is), crop (int,
                pixels), crops (int, how many of an image), exact (bool, False with `draft`).
            formats: list of str, the image formats that are read: "jpeg", "png" and so on.
            device: str, "cpu" or "cuda".
            engine: str, what runs the network: "torch" or "onnx", its compiled form.
            engine_note: str, why it is not the compiled form, where that could be; else empty.
            difference: float, by how much a probability of the compiled form was seen to differ
                from torch's at most; None where torch runs it.
            folder: str, the model's folder, as the daemon sees it.
            versions: map of str: of torch and torchvision, or onnxruntime; pillow, numpy, python;
                pillow_heif, where it is installed.
            max_timeout: float, seconds: the longest deadline that a request gets.

        Raises:
            LoadingFailed: there is no model; the message says why.
        """
        return self._ask("model")

    def status(self) -> dict[str, object]:
        """Tell the daemon's state, at once, also while it loads. Starts no daemon.

        Returns:
            A map of these fields; a newer daemon may have more. Times are in seconds (float), the
            rest of the numbers are counts (int), since the daemon's start unless it says otherwise.

            state: str, "loading", "ready", "loading-failed" or "draining"; swiprd(8) explains them.
            reason: str, a line that says more.
            reload_error: str, why the last reload failed; empty if it did not.
            pid: of the daemon's front. uptime: since it was started.
            memory: bytes that the front and the model's processes hold together, about.
            folder: str, the model's folder, as the daemon sees it. log: str, the path of its log,
                empty where that is no file. Both only for root and the daemon's own user.
            connections: clients that are connected now.
            queue: map: waiting (requests that no worker has yet), total (those that wait or run),
                limit (of total), oldest (how long the first has waited), by_uid (total of each; the
                keys are str).
            requests: map: outcomes (how many ended how: "ok", an error's code, or "left" where the
                client did not wait), by_uid (how many each uid has had), refused (by the queue).
            poison: map: remembered (images that hung or crashed a worker), refused (requests for
                them).
            latency: map, a histogram of arrival to answer of those that ended "ok": bounds (upper,
                of all buckets but the last), counts (of each bucket alone), sum (of the times).
            intakes: map: processes (there now), waiting (files and sockets that they work on, or
                that wait for one).
            model: str, the id of the model that serves; empty: none.

            And while one serves, of its processes since it was loaded:

            shape: map: workers, threads (of each), batch (images at most), alone (threads for an
                image that nothing runs beside).
            forkserver: map: pid, restarts.
            workers: list of maps: number (unique), pid, state (str, "spawning", "warming", "idle",
                "busy" or "gone"), age, answered (images and canaries), stuck (bool: its image takes
                far longer than is usual). The list is empty where no model serves.
            recycled: workers replaced as `max_requests` or `max_growth` says.
            kills: map: total (workers that were killed or died), last (list of maps, at most five:
                ago, worker (its number), why (str)).
        """
        return self._ask("status", start=False)

    def ping(self) -> dict[str, object]:
        """Have a known image go through a live worker, and its answer checked.

        Returns:
            A map: seconds (float, that it took), model (str, the id of the model).

        Raises:
            LoadingFailed: no model serves, or the answer is wrong.
        """
        return self._ask("ping")

    def reload(self) -> dict[str, object]:
        """Have the model read anew; answers when it serves, or raises why it does not.

        Returns:
            A map: model (str, the id of the model that serves now).

        Raises:
            Forbidden: only root and the daemon's own uid may.
            LoadingFailed: the new model cannot be loaded; the old one goes on.
        """
        return self._ask("reload", extra=START_ALLOWANCE, start=False)

    def _ask(self, op: str, *, extra: float = 0.0, start: bool = True) -> dict[str, object]:
        fields = self._run(lambda: Job(op, None, self._timeout, extra=extra, start=start))
        return {key: value for key, value in fields.items() if key not in ("id", "ok")}

    def _begin(self, source: Input) -> Job:
        try:
            job = self._job(source, None)
        except SwiprError as error:
            job = Job("predict")
            job.finish(error)
        self._exchange.submit(job)
        return job

    def _job(self, source: Input, timeout: float | None) -> Job:
        labels = None if self._labels is None else self._labels.latest
        timeout = self._timeout if timeout is None else timeout
        return Job("predict", self._open(source), timeout, labels=labels)

    def _open(self, source: Input) -> Image:
        while True:
            try:
                return Image.open(source)
            except NoDescriptor:
                if self._exchange.idle:
                    raise
            self._exchange.step()  # an answer closes its image's descriptor

    def _run(self, begin: Callable[[], Job], source: Input | None = None) -> dict[str, object]:
        with self._single_use:
            self._forget_abandoned()
            try:
                job = begin()
            except SwiprError as error:
                raise self._named(error, source) from error.__cause__
            self._exchange.submit(job)
            try:
                while job.outcome is None:
                    self._exchange.step()
            finally:
                self._exchange.forget(job)
        if isinstance(job.outcome, SwiprError):
            raise self._named(job.outcome, source) from job.outcome.__cause__
        return job.outcome

    def _forget_abandoned(self) -> None:
        while self._abandoned:
            self._exchange.forget(self._abandoned.pop())

    def _forked(self) -> None:
        """Leave the connection and the requests in flight to the parent process."""
        self._single_use = SingleUse()  # the old one may be held by a thread of the parent's
        self._exchange.close("asked before this process was forked: its parent gets the answer")

    def _answer(
        self, outcome: dict[str, object] | SwiprError, source: Input
    ) -> Prediction | SwiprError:
        if isinstance(outcome, SwiprError):
            return self._named(outcome, source)
        try:
            return self._prediction(outcome)
        except SwiprError as error:
            return self._named(error, source)

    def _named(self, error: SwiprError, source: Input | None) -> SwiprError:
        if source is None or not self._named_errors:
            return error
        from swiprctl.naming import named

        return named(error, source)

    def _explained(self, error: SwiprError, source: int, job: Job) -> SwiprError:
        from swiprctl.hints import explain

        return explain(error, source, job.image.head if job.image is not None else b"")

    def _prediction(self, fields: dict[str, object]) -> Prediction:
        prediction = Prediction.parse(fields)
        if self._labels is not None:
            self._labels.complete(prediction, self.model if self._labels_needed else None)
        return prediction


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT:
        raise UsageError(f"timeout: above 0, at most {MAX_TIMEOUT:.0f} seconds")
    return timeout


_living: list[ref[Client]] = []


def _after_fork() -> None:
    for one in _living:
        if (client := one()) is not None:
            client._forked()


os.register_at_fork(after_in_child=_after_fork)
