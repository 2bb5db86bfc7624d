"""A stand-in for `swiprd serve --private`, for tests of how the client starts it.

`make(folder)` writes a package of that name, with modules named torch and torchvision beside it,
to be put on PYTHONPATH. It takes the socket that is passed, tells $STANDIN_RECORD how it was
started, answers each image with its size, unless $STANDIN_MUTE is set, and leaves when it is asked
to reload.
"""

from __future__ import annotations

from pathlib import Path

_MAIN = """
import json, os, socket, struct, sys, threading
from swiprctl.protocol import Decoder, Reply

if os.environ.get("STANDIN_DIES"):
    print("a first line", file=sys.stderr)
    sys.exit(os.environ["STANDIN_DIES"])
record = {
    "pid": os.getpid(),
    "arguments": sys.argv[1:],
    "environment": {k: v for k, v in os.environ.items() if k.startswith(("LISTEN", "NOTIFY"))},
    "descriptors": {n: os.readlink(f"/proc/self/fd/{n}") for n in ("0", "1", "2", "3")},
    "more": [n for n in os.listdir("/proc/self/fd") if int(n) > 3
             and os.path.exists(f"/proc/self/fd/{n}")],
    "session": os.getsid(0),
    "folder": os.getcwd(),
    "mask": os.umask(0o077),
}
with open(os.environ["STANDIN_RECORD"], "a") as file:
    file.write(json.dumps(record) + "\\n")
listener = socket.socket(fileno=3)

def serve(sock):
    decoder = Decoder()
    while True:
        data, descriptors, _, _ = socket.recv_fds(sock, 65536, 1)
        if not data:
            return
        decoder.feed(data, descriptors[0] if descriptors else None)
        for frame in decoder.frames():
            if frame.fields["op"] == "reload":
                os._exit(0)
            size = os.fstat(frame.attachment).st_size if frame.attachment is not None else 0
            if frame.attachment is not None:
                os.close(frame.attachment)
            fields = {"probabilities": [float(size)], "model": str(os.getpid())}
            if not os.environ.get("STANDIN_MUTE"):
                sock.sendall(Reply(frame.fields["id"], fields).encode())

while True:
    sock, _ = listener.accept()
    threading.Thread(target=serve, args=(sock,), daemon=True).start()
"""


def make(folder: Path) -> Path:
    """Write the package; gives what has to be on PYTHONPATH."""
    package = folder / "swiprd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_MAIN)
    (folder / "torch.py").touch()
    (folder / "torchvision.py").touch()
    return folder
