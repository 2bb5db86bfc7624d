"""Step 10: memory runs out, and the kernel ends one process of the service after another.

It takes the memory controller as cgroup v1, which systemd leaves alone: the step makes a cgroup by
hand and moves processes of the service into it. The kills are the kernel's own, by its OOM killer;
that systemd is told of them, as it is with cgroup v2, is not tried.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from check import USER, Clients, check, main_pid, run, show, sure, wait_for
from host import HOME, PHOTO, ROW, SERVICE, row, status

_ROOM = 500 << 20  # bytes for what all processes allocate from then on: a huge picture takes more
_CLOSE = 32 << 20  # bytes for one process that is not to blame, beside one that takes it all
_HUGE = HOME / "huge.png"
_NAMED = {65, 70, 75, 124}  # exit statuses of what may become of such a picture, if it has no row

_ROOT = Path("/sys/fs/cgroup/memory")
_OURS = _ROOT / "swipr-e2e"

_BALLAST = f"""
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
taken = bytearray({8 * _CLOSE})
"""


def out_of_memory() -> None:
    """The OOM killer takes a worker, the forkserver and the front, while 8 clients loop"""
    policy = show(SERVICE, "OOMPolicy")
    check(policy == "continue", "OOMPolicy=continue", policy)
    if not _may():
        print("   skipped: no memory controller of cgroup v1 here", flush=True)
        return
    expected = row()
    for kill in (_worker, _forkserver, _front):
        with Clients(PHOTO, expected) as clients:
            kill(clients)
            clients.more(16)
        clients.check()
        check(row() == expected, "the daemon is there, and answers as before")


def _worker(clients: Clients) -> None:
    """A picture takes more memory than the whole service may have."""
    before, restarts = status(), show(SERVICE, "NRestarts")
    _make_huge()
    with _cgroup(_ROOM, *_family(before)):
        command = ["predict", "--no-autostart", str(_HUGE)]
        asked = run("swiprctl", *command, user=USER)
        check(_kills() > 0, f"the OOM killer took {_kills()} worker(s)")
        clients.more(16)
    check(
        ROW.fullmatch(asked.stdout) or (asked.returncode in _NAMED and asked.stderr),
        f"the picture: exit {asked.returncode}: {asked.stderr.strip()}",
        asked,
    )
    _HUGE.unlink()
    after = status()
    for name, old, new in (
        ("front", before["pid"], after["pid"]),
        ("forkserver", before["forkserver"]["pid"], after["forkserver"]["pid"]),
    ):
        check(old == new, f"the same {name} as before", (old, new))
    check(show(SERVICE, "NRestarts") == restarts, "no restart")


def _forkserver(clients: Clients) -> None:
    before, restarts = status(), show(SERVICE, "NRestarts")
    old = before["forkserver"]["pid"]
    _squeeze(old)
    clients.more(16)
    wait_for(lambda: status()["forkserver"]["pid"] not in (0, old), "another forkserver")
    check(status()["pid"] == before["pid"], "another forkserver, and the same front")
    check(show(SERVICE, "NRestarts") == restarts, "no restart")


def _front(clients: Clients) -> None:
    restarts, old = int(show(SERVICE, "NRestarts")), main_pid()
    _squeeze(old)
    wait_for(lambda: main_pid() not in (0, old), "another front")
    clients.more(16)
    now = int(show(SERVICE, "NRestarts"))
    check(now == restarts + 1, f"systemd has started another: NRestarts {now}", restarts)


def _squeeze(pid: int) -> None:
    """Have the OOM killer find a process that takes all memory, and rather end this one."""
    with _cgroup(_CLOSE, pid):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        ballast = subprocess.run(
            [sys.executable, "-c", _BALLAST, str(_OURS / "cgroup.procs")], timeout=60
        )
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the process is gone")
        check(_kills() > 0, f"the OOM killer took {_kills()}, this one first", ballast)


def _family(now: dict[str, Any]) -> list[int]:
    return [now["pid"], now["forkserver"]["pid"], *(worker["pid"] for worker in now["workers"])]


def _make_huge() -> None:
    """A picture just under the limit on pixels: 170 MB as it is, three times that in colour."""
    code = "from PIL import Image; import sys; "
    code += "Image.new('L', (13000, 13000), 128).save(sys.argv[1], compress_level=1)"
    sure("/usr/bin/python3", "-c", code, str(_HUGE))
    shutil.chown(_HUGE, USER)


def _may() -> bool:
    """Whether the controller is there, and lets this tree write to it."""
    return (_ROOT / "cgroup.procs").exists() and not run(
        "mount", "-o", "remount,bind,rw", str(_ROOT)
    ).returncode


def _kills() -> int:
    words = (_OURS / "memory.oom_control").read_text().split()
    return int(words[words.index("oom_kill") + 1])


@contextlib.contextmanager
def _cgroup(most: int, *pids: int) -> Iterator[None]:
    """Bound what these and their children-to-be allocate from now on, in bytes."""
    _OURS.mkdir()
    try:
        (_OURS / "memory.limit_in_bytes").write_text(str(most))
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError):
                (_OURS / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        wait_for(_removed, "the cgroup is empty")


def _removed() -> bool:
    for pid in (_OURS / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (_ROOT / "cgroup.procs").write_text(pid)
    with contextlib.suppress(OSError):
        _OURS.rmdir()
    return not _OURS.exists()
