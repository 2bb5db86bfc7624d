"""A filesystem whose server does not answer: what a user can mount, and pass us a file of.

`python fuseserver.py FOLDER` mounts itself there, writes a line when it serves, and unmounts at the
end of its standard input. Speaks the protocol of <linux/fuse.h> to /dev/fuse by hand. Each file
holds the bytes of PHOTO and is named after what its server never answers: `open`, or, of an open
file, `read`, `flush`, `stat`, `statfs`, or nothing (`good`). With `direct-` before it, reads bypass
the page cache. `lookup` is not even said to be there or not. What is written to `unkept` is taken,
and only its close says that there is no room.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=6Q10I")
_NOSUID, _NODEV, _DETACH = 2, 4, 2
_LOOKUP, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE, _FLUSH, _INIT = 1, 3, 14, 15, 17, 18, 25, 26
_FORGET, _INTERRUPT, _BATCH_FORGET = 2, 36, 42
_DIRECT_IO = 1

NAMES = [
    f"{how}{what}"
    for how in ("", "direct-")
    for what in ("good", "open", "read", "flush", "stat", "statfs")
] + ["unkept"]


def possible() -> bool:
    """Whether this machine lets us: root, with the right to mount, and /dev/fuse."""
    if os.geteuid() or not Path("/dev/fuse").exists():
        return False
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return bool(held >> 21 & 1)  # CAP_SYS_ADMIN


@contextlib.contextmanager
def mounted(folder: Path, photo: Path) -> Iterator[Path]:
    """The filesystem, in a process of its own. Whoever hangs in it is freed at the end."""
    folder.mkdir(exist_ok=True)
    _SERVERS[folder] = server = subprocess.Popen(
        [sys.executable, __file__, str(folder), str(photo)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"serving\n"
        yield folder
    finally:
        release(folder)
        del _SERVERS[folder]


def release(folder: Path) -> None:
    """Unmount it: whoever hangs in it is freed."""
    server = _SERVERS[folder]
    if server.returncode is None:
        assert server.stdin is not None
        assert server.stdout is not None
        server.kill()  # the end of its hold on /dev/fuse is the end of every request that waits
        server.stdin.close()
        server.stdout.close()
        server.wait(30)
        _LIBC.umount2(os.fsencode(folder), _DETACH)


_SERVERS: dict[Path, subprocess.Popen[bytes]] = {}


class _Server:
    def __init__(self, device: int, photo: bytes) -> None:
        self._device = device
        self._photo = photo

    def answer(self) -> None:
        """Answer one request, or do not."""
        data = os.read(self._device, (1 << 20) + 4096)
        _, opcode, unique, node, *_ = _IN.unpack_from(data)
        body = data[_IN.size :]
        name = NAMES[node - 2] if node >= 2 else ""
        what = name.removeprefix("direct-")
        match opcode:
            case 2 | 36 | 42:  # FORGET, INTERRUPT, BATCH_FORGET: want no answer
                return
            case 26:  # INIT
                self._reply(
                    unique,
                    struct.pack(
                        "=4I2H2I2H8I", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 0, 0, *[0] * 8
                    ),
                )
            case 1:  # LOOKUP
                asked = body.rstrip(b"\0").decode()
                if asked == "lookup":
                    return
                if asked not in NAMES:
                    self._reply(unique, error=errno.ENOENT)
                    return
                child = NAMES.index(asked) + 2
                self._reply(unique, struct.pack("=4Q2I", child, 0, 60, 0, 0, 0) + self._attr(child))
            case 3 if what != "stat":  # GETATTR
                self._reply(unique, struct.pack("=Q2I", 0, 0, 0) + self._attr(node))
            case 14 if what != "open":  # OPEN
                flags = _DIRECT_IO if name.startswith("direct-") else 0
                self._reply(unique, struct.pack("=Q2I", 1, flags, 0))
            case 15 if what != "read":  # READ
                _, offset, size = struct.unpack_from("=2QI", body)
                self._reply(unique, self._photo[offset : offset + size])
            case 16:  # WRITE
                _, _, size = struct.unpack_from("=2QI", body)
                self._reply(unique, struct.pack("=2I", size, 0))
            case 17 if what != "statfs":  # STATFS
                self._reply(unique, struct.pack("=5Q10I", *[0] * 5, 4096, 255, 4096, *[0] * 7))
            case 25 if what != "flush":  # FLUSH
                self._reply(unique, error=errno.EDQUOT if what == "unkept" else 0)
            case 18:  # RELEASE
                self._reply(unique)
            case 3 | 14 | 15 | 17 | 25:
                return  # this is the one that it never answers
            case _:
                self._reply(unique, error=errno.ENOSYS)

    def _attr(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
        size = len(self._photo)
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _reply(self, unique: int, data: bytes = b"", *, error: int = 0) -> None:
        with contextlib.suppress(FileNotFoundError):  # whoever asked has been killed
            os.write(self._device, _OUT.pack(_OUT.size + len(data), -error, unique) + data)


def _main(folder: str, photo: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _LIBC.mount(b"swipr", folder.encode(), b"fuse", _NOSUID | _NODEV, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        server = _Server(device, Path(photo).read_bytes())
        print("serving", flush=True)
        while True:
            ready, _, _ = select.select([device, 0], [], [])
            if 0 in ready:
                return
            server.answer()
    finally:
        _LIBC.umount2(folder.encode(), _DETACH)
        os.close(device)  # the end of every request that waits


if __name__ == "__main__":
    _main(*sys.argv[1:])
