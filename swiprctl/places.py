"""Where the sockets are of all daemons that this user may reach: the system's, the user's own, and
the one that `$SWIPR_SOCKET` names. Looks at folders; connects to nothing."""

from __future__ import annotations

import os

from swiprctl import address
from swiprctl.address import Address, NotListening, check_folder
from swiprctl.errors import NoDaemon

_END = ".sock"


def every_socket() -> list[Address]:
    """Name each socket that is there, once: the system's, the user's own, the variable's."""
    found = [
        Address(path, "system", "swiprd" if name == address.DEFAULT_NAME else f"swiprd@{name}")
        for name, path in _sockets(address.SYSTEM_FOLDER)
    ]
    for folder in _private_folders():
        found += [Address(path, "private") for _, path in _sockets(folder)]
    if named := os.environ.get("SWIPR_SOCKET"):
        found.append(Address(named, "explicit"))
    by_path: dict[str, Address] = {}
    for one in found:
        by_path.setdefault(os.path.realpath(one.path), one)
    return list(by_path.values())


def _sockets(folder: str) -> list[tuple[str, str]]:
    """Name and path of the sockets in a folder, sorted, `default` first."""
    try:
        names = [name.removesuffix(_END) for name in os.listdir(folder) if name.endswith(_END)]
    except OSError:
        return []  # it is not there, or closed to us
    names.sort(key=lambda name: (name != address.DEFAULT_NAME, name))
    return [(name, f"{folder}/{name}{_END}") for name in names]


def _private_folders() -> list[str]:
    """Name the folders that are the user's own, and closed to others.

    Not only the one that is used now: a daemon that cron(8) had started is where no
    `$XDG_RUNTIME_DIR` was set.
    """
    uid = os.geteuid()
    bases = [os.environ.get("XDG_RUNTIME_DIR", ""), address.RUNTIME_FOLDER.format(uid=uid)]
    folders = [f"{base.rstrip('/')}/swipr" for base in bases if base.startswith("/")]
    fallback = address.FALLBACK_FOLDER.format(uid=uid)
    folders.append(fallback)
    parent, name = os.path.split(fallback)
    try:
        folders += sorted(
            f"{parent}/{one}" for one in os.listdir(parent) if one.startswith(f"{name}-")
        )
    except OSError:
        pass  # then there is none of these
    return [folder for folder in folders if _is_safe(folder)]


def _is_safe(folder: str) -> bool:
    try:
        check_folder(folder)
    except (NoDaemon, NotListening):
        return False
    return True
