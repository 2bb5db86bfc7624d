"""A filesystem whose server answers late or never: what a user can mount, and pass us a file of.

Speaks the protocol of <linux/fuse.h> to /dev/fuse by hand. Each file holds the bytes of a photo and
is named after what its server never answers: `open`, or, of an open file, `read`, `flush`, `stat`,
`statfs`, `release`, or nothing (`good`). With `direct-` before it, reads bypass the page cache;
with `late-`, the answer comes after `late` seconds. `answer()` has it give an answer that it has
held back. What is written to `unkept` is taken, and only its close says that there is no room.
`lookup` is not even said to be there or not.

Three kinds of mount: root's, as a service would make it; that of a user, by fusermount3, which
nobody else may look into; and one of a block device, which the kernel tells apart from no disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=6Q10I")
_NOSUID, _NODEV, _DETACH = 2, 4, 2
_DIRECT_IO = 1
_DIRENT = struct.Struct("=2Q2I")
_REGULAR = 8
_OPCODES = {3: "stat", 15: "read", 17: "statfs", 18: "release", 25: "flush"}

NAMES = [
    f"{how}{what}"
    for how in ("", "direct-", "late-")
    for what in ("good", "open", "read", "flush", "stat", "statfs", "release")
] + ["unkept"]


def possible() -> bool:
    """Whether this machine lets us: root, with the right to mount, and /dev/fuse."""
    if os.geteuid() or not Path("/dev/fuse").exists():
        return False
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return bool(held >> 21 & 1)  # CAP_SYS_ADMIN


def possible_for_users() -> bool:
    """Whether users may mount here, and we are root, who can be any of them."""
    return (
        possible()
        and shutil.which("fusermount3") is not None
        and Path("/dev/fuse").stat().st_mode & 0o006 == 0o006  # as udev makes it
    )


def possible_on_disks() -> bool:
    """Whether a block device can be had for a mount of one."""
    return possible() and Path("/dev/loop-control").exists() and shutil.which("losetup") is not None


@contextlib.contextmanager
def mounted(
    folder: Path,
    photo: Path,
    *,
    uid: int = 0,
    disk: bool = False,
    late: float = 2.0,
    listed: Sequence[str] | None = NAMES,
) -> Iterator[Path]:
    """The filesystem, in a process of its own. Whoever hangs in it is freed at the end.

    Args:
        uid: whose it is: not root's is mounted by fusermount3.
        disk: make it that of a block device.
        late: seconds until what is late.
        listed: what it says that it holds; None: it is never said.
    """
    folder.mkdir(exist_ok=True)
    os.chown(folder, uid, uid)
    with _block_device(folder.parent) if disk else contextlib.nullcontext("") as device:
        _SERVERS[folder] = server = _Process(
            *(folder, photo.read_bytes(), uid, device, late, listed)
        )
        try:
            said = server.line()
            assert said == "serving", said
            yield folder
        finally:
            release(folder)
            del _SERVERS[folder]


def answer(folder: Path, what: str) -> None:
    """Have the server answer what it holds back of this kind, such as `flush`, now and later."""
    _SERVERS[folder].order(what)


def release(folder: Path) -> None:
    """Unmount it: whoever hangs in it is freed."""
    if _SERVERS[folder].end():
        _LIBC.umount2(os.fsencode(folder), _DETACH)


@contextlib.contextmanager
def _block_device(folder: Path) -> Iterator[str]:
    image = folder / "disk"
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    command = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        yield device
    finally:
        # Whoever the unmounting has freed may have the filesystem for a moment yet.
        subprocess.run(["losetup", "--detach", device], check=True)


class _Process:
    """The server's process: a fork, as the interpreter may lie where its uid cannot reach it."""

    def __init__(
        self,
        folder: Path,
        photo: bytes,
        uid: int,
        device: str,
        late: float,
        listed: Sequence[str] | None,
    ) -> None:
        ordered, self._orders = os.pipe()
        self._said, says = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._orders)
            os.close(self._said)
            _be_server(folder, photo, uid, device, late, listed, ordered, says)
        os.close(ordered)
        os.close(says)

    def line(self) -> str:
        """What it said last."""
        return os.read(self._said, 4096).decode().strip()

    def order(self, word: str) -> None:
        """Tell it something."""
        os.write(self._orders, f"{word}\n".encode())
        assert self.line() == word  # heard

    def end(self) -> bool:
        """Kill it: the end of its hold on /dev/fuse is the end of every request that waits.

        Returns:
            Whether it was there.
        """
        if not self._pid:
            return False
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._orders)
        os.close(self._said)
        self._pid = 0
        return True


_SERVERS: dict[Path, _Process] = {}


class _Server:
    def __init__(
        self, device: int, photo: bytes, late: float, listed: Sequence[str] | None
    ) -> None:
        self._device = device
        self._listed = listed
        self._photo = photo
        self._late = late
        self._held: list[tuple[float, str, int, bytes]] = []  # when, what, unique, the answer
        self._free: set[str] = set()

    def wait(self, orders: int) -> bytes | None:
        """Until there is a request (None) or an order, which is given. Answers what is late."""
        while True:
            now = time.monotonic()
            due = [one for one in self._held if one[0] <= now]
            self._held = [one for one in self._held if one[0] > now]
            for _, _, unique, data in due:
                self._reply(unique, data)
            first = min((one[0] for one in self._held), default=float("inf"))
            patience = None if first == float("inf") else first - now
            ready, _, _ = select.select([self._device, orders], [], [], patience)
            if orders in ready:
                return os.read(orders, 64)
            if ready:
                return None

    def let(self, what: str) -> None:
        """Answer what has been held back of this kind, and hold back none any more."""
        self._free.add(what)
        self._held = [(0.0 if one[1] == what else one[0], *one[1:]) for one in self._held]

    def serve(self) -> None:
        """Answer one request, or do not."""
        data = os.read(self._device, (1 << 20) + 4096)
        _, opcode, unique, node, *_ = _IN.unpack_from(data)
        body = data[_IN.size :]
        name = NAMES[node - 2] if node >= 2 else ""
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
            case 14 if name.endswith("open"):  # OPEN
                return
            case 14:  # OPEN
                flags = _DIRECT_IO if name.startswith("direct-") else 0
                self._reply(unique, struct.pack("=Q2I", 1, flags, 0))
            case 16:  # WRITE
                _, _, size = struct.unpack_from("=2QI", body)
                self._reply(unique, struct.pack("=2I", size, 0))
            case 28 if self._listed is None:  # READDIR
                return
            case 28:  # READDIR
                _, offset, size = struct.unpack_from("=2QI", body)
                self._reply(unique, self._entries(offset, size))
            case 25 if name == "unkept":  # FLUSH
                self._reply(unique, error=errno.EDQUOT)
            case _ if opcode in _OPCODES:
                self._answer(_OPCODES[opcode], name, unique, self._data(opcode, node, body))
            case _:
                self._reply(unique, error=errno.ENOSYS)

    def _answer(self, what: str, name: str, unique: int, data: bytes) -> None:
        how, _, which = name.rpartition("-")
        if which != what or what in self._free:
            self._reply(unique, data)
            return
        when = time.monotonic() + self._late if how == "late" else float("inf")
        self._held.append((when, what, unique, data))

    def _data(self, opcode: int, node: int, body: bytes) -> bytes:
        match _OPCODES[opcode]:
            case "stat":
                return struct.pack("=Q2I", 0, 0, 0) + self._attr(node)
            case "read":
                _, offset, size = struct.unpack_from("=2QI", body)
                return self._photo[offset : offset + size]
            case "statfs":
                return struct.pack("=5Q10I", *[0] * 5, 4096, 255, 4096, *[0] * 7)
            case _:
                return b""

    def _entries(self, offset: int, size: int) -> bytes:
        data = b""
        assert self._listed is not None
        for number, name in enumerate(self._listed[offset:], offset + 1):
            entry = _DIRENT.pack(number + 1, number, len(name), _REGULAR) + name.encode()
            entry += bytes(-len(entry) % 8)
            if len(data) + len(entry) > size:
                break
            data += entry
        return data

    def _attr(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
        size = len(self._photo)
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _reply(self, unique: int, data: bytes = b"", *, error: int = 0) -> None:
        with contextlib.suppress(FileNotFoundError):  # whoever asked has been killed
            os.write(self._device, _OUT.pack(_OUT.size + len(data), -error, unique) + data)


def _be_server(
    folder: Path,
    photo: bytes,
    uid: int,
    disk: str,
    late: float,
    listed: Sequence[str] | None,
    orders: int,
    says: int,
) -> NoReturn:
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        device = _mount_as_user(folder) if uid else _mount(folder, disk)
        server = _Server(device, photo, late, listed)
        os.write(says, b"serving\n")
        while True:
            told = server.wait(orders)
            if told is None:
                server.serve()
            elif told:
                server.let(told.decode().strip())
                os.write(says, told)
            else:
                break  # the end of whoever has mounted it
    except BaseException as error:
        os.write(says, repr(error).encode())
    finally:
        os._exit(0)  # the end of every request that waits


def _mount(folder: Path, disk: str) -> int:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    kind = b"fuseblk" if disk else b"fuse"
    flags = _NOSUID | _NODEV
    if _LIBC.mount((disk or "swipr").encode(), os.fsencode(folder), kind, flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    return device


def _mount_as_user(folder: Path) -> int:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            ["fusermount3", "-o", "fsname=swipr", "--", str(folder)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=sys.__stderr__,
        )
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    return descriptors[0]
