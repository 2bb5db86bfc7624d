"""Advice about a daemon that listens and sends nothing. Imported for that alone.

The socket does not tell which process it is: SO_PEERCRED names the process that called listen(2),
which is systemd or a client that has long gone. /proc tells, for the user's own processes.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.address import Address

_LISTENS = 0x10000  # __SO_ACCEPTCON of <linux/net.h>


def advice(address: Address) -> str:
    """Say where to look and what to do."""
    if address.kind == "system":
        unit = f"{address.unit}.service"
        return f"see 'systemctl status {unit}'; 'systemctl restart {unit}' replaces it (as root)"
    found = [(pid, _state(pid)) for pid in _listeners(address.path)]
    shown = ", ".join(f"pid {pid}{state}" for pid, state in found)
    text = f"it is {shown}" if shown else "it may be another user's, whose processes are not shown"
    if address.kind == "private":
        log = f"{address.path.removesuffix('.sock')}.log"
        text = f"{text}; its log is {log}"
        if found:
            pids = " ".join(str(pid) for pid, _ in found)
            text += f"; 'kill -KILL {pids}' ends it, and the next predict starts another"
    return text


def _listeners(path: str) -> list[int]:
    """Find the user's processes that listen on a socket."""
    try:
        with open("/proc/net/unix", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split(maxsplit=7) for line in file][1:]
    except OSError:
        return []
    # Num RefCount Protocol Flags Type St Inode Path
    links = {
        f"socket:[{row[6]}]"
        for row in rows
        if len(row) == 8 and row[7] == path and int(row[3], 16) & _LISTENS
    }
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _holds(pid, links)]


def _holds(pid: str, links: set[str]) -> bool:
    try:
        return any(
            os.readlink(f"/proc/{pid}/fd/{number}") in links
            for number in os.listdir(f"/proc/{pid}/fd")
        )
    except OSError:
        return False  # it has gone, or is somebody else's


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return {"T": ", which is stopped", "D": ", which waits for a disk"}.get(state, "")
