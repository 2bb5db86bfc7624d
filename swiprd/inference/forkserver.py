"""The process that has the model, and does nothing but fork workers from it.

Started by exec with one end of a socketpair. It loads the model once (weights mapped, not copied)
and then forks a worker for every `fork` it is told, in about 10 ms. It runs no forward pass and
starts no thread: after an OpenMP parallel region a forked child hangs in its first one. CUDA is
for workers only. It reaps its children, and reports each death. It leaves on the front's EOF.

What the front and it say to each other is in swiprd.system.messages.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from swiprctl.errors import BadRequest
from swiprctl.protocol import Decoder, Frame, encode
from swiprd.system.kernel import die_with_parent
from swiprd.system.log import log, set_up
from swiprd.system.messages import (
    Exited,
    Failed,
    Fork,
    Forked,
    Load,
    Loaded,
    NotForked,
    Report,
    parse_command,
)
from swiprd.system.proc import bound_own_memory, memory_bounded, offer_to_the_oom_killer

if TYPE_CHECKING:
    from swiprd.inference.engine import Engine


class Forkserver:
    """The state of this process: the control socket, the model and the children."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._decoder = Decoder()
        self._children: dict[int, tuple[int, int]] = {}  # pidfd → pid, worker's number
        self._engine: Engine | None = None
        self._device = "cpu"
        self._memory: int | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve the front until it closes its end; then take every child along."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._reap(key.fd)
                elif not self._listen():
                    return

    def leave(self) -> None:
        """SIGKILL and reap what is left: a worker may be stuck in C and deaf to EOF."""
        for pidfd, (pid, _) in self._children.items():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _listen(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
        if not data:
            return False
        self._decoder.feed(data, descriptors[0] if descriptors else None)
        for frame in self._decoder.frames():
            self._obey(frame)
        return True

    def _obey(self, frame: Frame) -> None:
        match parse_command(frame.fields):
            case Load() as command:
                self._memory = command.memory
                self._load(command)
            case Fork() as command if frame.attachment is not None:
                self._fork(command.worker, frame.attachment)
            case Fork():
                raise BadRequest("the front sent no socket for a worker")

    def _load(self, command: Load) -> None:
        try:
            self._engine, loaded = _load_model(command)
        except Exception as error:
            # Whatever stops a model from loading is for its owner to read, not for a traceback.
            self._tell(Failed(reason=str(error) or type(error).__name__))
            return
        self._device = loaded.device
        gc.collect()
        gc.freeze()  # so that a child's collections do not write to, and thereby copy, our pages
        self._tell(loaded)

    def _fork(self, worker: int, descriptor: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._tell(NotForked(worker=worker, reason=str(error)))
            return
        if pid == 0:
            self._become_worker(parent, descriptor)
        os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid, worker
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._tell(Forked(worker=worker, pid=pid), pidfd)

    def _become_worker(self, parent: int, descriptor: int) -> None:
        """The child's side of the fork. Never returns."""
        status = 1
        try:
            die_with_parent(parent)
            offer_to_the_oom_killer()
            bound_own_memory(self._memory)
            self._selector.close()
            self._control.close()
            for pidfd in self._children:
                os.close(pidfd)
            from swiprd.inference.worker import serve

            assert self._engine is not None  # the front forks after `loaded` only
            serve(socket.socket(fileno=descriptor), self._engine, self._device)
            status = 0
        except BaseException:
            # Last line of defence: nothing of the parent's loop may run on in a child.
            log.critical("a worker failed", exc_info=True)
        finally:
            os._exit(status)

    def _reap(self, pidfd: int) -> None:
        pid, worker = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self._tell(Exited(worker=worker, status=status))

    def _tell(self, report: Report, descriptor: int | None = None) -> None:
        data = encode(report.fields())
        if descriptor is None:
            self._control.sendall(data)
        else:
            # A frame of a few dozen bytes: the kernel takes it whole or not at all.
            socket.send_fds(self._control, [data], [descriptor])


def _load_model(command: Load) -> tuple[Engine, Loaded]:
    from swiprd.folder.spec import load_spec
    from swiprd.inference.decoders import VERSIONS, readable
    from swiprd.inference.engines import load_engine

    _import_worker()
    spec = load_spec(Path(command.folder))
    with _bounded() if spec.is_onnx else contextlib.nullcontext():
        engine, device, note = load_engine(spec, command)
    return engine, Loaded(
        labels=engine.labels,
        model=engine.model_id,
        versions=engine.versions | VERSIONS,
        device=device,
        engine=engine.name,
        difference=engine.difference,
        engine_note=note,
        formats=readable(),
    )


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Load with no more memory than this host has, and be what the kernel ends if it is too much.

    Of half a megabyte of ONNX onnxruntime computes gigabytes of constants as it loads it; those
    that there is no memory for it leaves to the workers.
    """
    offer_to_the_oom_killer()
    with memory_bounded(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        yield


def _import_worker() -> None:
    """Import what every worker needs, once, and not in every child."""
    from swiprd.inference import worker  # noqa: F401


def main() -> None:
    """Run for the front whose pid and control socket's descriptor the command line names."""
    parent, descriptor = (int(argument) for argument in sys.argv[1:])
    die_with_parent(parent)
    set_up()
    # A terminal's ^C and systemd's SIGTERM reach the whole group; only the front decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = Forkserver(socket.socket(fileno=descriptor))
    with contextlib.suppress(ImportError):  # `load` tries again, and tells why not
        _import_worker()  # while the front, perhaps, still imports its own modules
    try:
        server.run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the front is gone: the same as its EOF
    finally:
        server.leave()


if __name__ == "__main__":
    main()
