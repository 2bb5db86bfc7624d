"""A daemon of few words, for tests of the client: a real socket, and a script for each connection.

`Peer(path, script)` listens and runs `script(connection)` in a thread for each connection it
accepts; `connection` speaks protocol.py. What a script raises is raised again when the peer is
closed. No model, no worker: replies are what the script says.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swiprctl.errors import SwiprError
from swiprctl.protocol import Decoder, Frame, Reply

PATIENCE = 20.0
"""Seconds after which a script that waits for the client gives up, so that no test hangs."""


class Gone(Exception):
    """The client has closed the connection. Ends a script quietly."""


class Asked:
    """One request, and the image's bytes if one came, by whichever way."""

    def __init__(self, fields: dict[str, Any], image: bytes | None, by_descriptor: bool) -> None:
        self.fields = fields
        self.id: int = fields["id"]
        self.op: str = fields["op"]
        self.image = image
        self.by_descriptor = by_descriptor


class Connection:
    """The daemon's end of one connection. `number` counts from 0 in the order of accepting."""

    def __init__(self, sock: socket.socket, number: int, *, drop_descriptors: bool) -> None:
        self.socket = sock
        self.number = number
        self._drop = drop_descriptors
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()

    def asked(self, *, look: Callable[[int], None] | None = None) -> Asked:
        """Wait for the next request; `look` is called with the descriptor before it is closed.

        Raises:
            Gone: the client closed the connection.
        """
        while not self._frames:
            try:
                if self._drop:  # as ssh(1) does: without room for them, the kernel closes them
                    data, attachment = self.socket.recv(1 << 16), None
                else:
                    data, attachments, _, _ = socket.recv_fds(self.socket, 1 << 16, 4)
                    attachment = attachments[0] if attachments else None
            except ConnectionError as error:
                raise Gone from error
            if not data:
                raise Gone
            self._decoder.feed(data, attachment)
            self._frames.extend(self._decoder.frames())
        frame = self._frames.popleft()
        image = frame.fields.get("image")
        if frame.attachment is not None:
            if look is not None:
                look(frame.attachment)
            size = os.fstat(frame.attachment).st_size
            image = os.pread(frame.attachment, size, 0)
            os.close(frame.attachment)
        assert image is None or isinstance(image, bytes)
        return Asked(frame.fields, image, frame.attachment is not None)

    def answer(self, asked: Asked, *probabilities: float, queued: float = 0.0) -> None:
        """Send a prediction."""
        self.reply(
            asked.id,
            probabilities=list(probabilities),
            model="peer@1",
            queued=queued,
            decode=0.001,
            infer=0.002,
            some_later_field=True,
        )

    def reply(self, id: int, **fields: object) -> None:
        """Send any reply that says ok."""
        self.send(Reply(id, fields).encode())

    def refuse(self, id: int | None, error: SwiprError) -> None:
        """Send an error."""
        self.send(Reply(id, None, error).encode())

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are.

        Raises:
            Gone: the client closed the connection.
        """
        try:
            self.socket.sendall(data)
        except ConnectionError as error:
            raise Gone from error


class Peer:
    """Listens on `path` while it is entered; `connections` counts those accepted."""

    def __init__(
        self,
        path: Path,
        script: Callable[[Connection], None],
        *,
        drop_descriptors: bool = False,
    ) -> None:
        self.path = str(path)
        self.connections = 0
        self._script = script
        self._drop = drop_descriptors
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._failed: list[BaseException] = []

    def __enter__(self) -> Peer:
        self._listener.bind(self.path)
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends accept(2), which close does not
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a script does not end"
        self._listener.close()
        Path(self.path).unlink()
        if self._failed:
            raise self._failed[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            self._sockets.append(sock)
            connection = Connection(sock, self.connections, drop_descriptors=self._drop)
            self.connections += 1
            self._start(lambda connection=connection: self._run(connection))

    def _run(self, connection: Connection) -> None:
        try:
            self._script(connection)
        except Gone:
            pass
        except BaseException as error:
            self._failed.append(error)
        finally:
            connection.socket.close()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()
