"""Which socket the daemon listens on, and how to connect to it.

Order: the one that was asked for, that of `$SWIPR_SOCKET` or `$SWIPR_MODEL`, the system's in
/run/swipr if it is there, the user's own, of which each model's folder has one. This module knows
where sockets are and what their failures mean; it starts no daemon and speaks no protocol.

`_socket` is the standard library's own C module. `socket`, its wrapper, builds enums of some 200
constants, which takes 7 ms: as long as all the rest of the client.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
import struct

from swiprctl.errors import Forbidden, NoDaemon, SwiprError, UsageError, cannot_open

SYSTEM_FOLDER = "/run/swipr"
RUNTIME_FOLDER = "/run/user/{uid}"
FALLBACK_FOLDER = "/tmp/swipr-{uid}"
DEFAULT_NAME = "default"

MAX_PATH = 107
"""Bytes of a socket's path; unix(7) has 108 with the final NUL."""

_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class NotListening(Exception):
    """Nothing listens on the socket: it is not there, or its owner is gone. Never leaves here
    and the exchange, which start a daemon or raise what `Address.no_daemon` makes of it."""


class Address:
    """A socket's path and who is expected behind it: `kind` is explicit, system or private.

    `unit` is the system's; `folder` that of the model which a private daemon serves, empty where
    it is the shipped one.
    """

    __slots__ = ("folder", "kind", "path", "unit")

    def __init__(self, path: str, kind: str, unit: str = "", folder: str = "") -> None:
        self.path = path
        self.kind = kind
        self.unit = unit
        self.folder = folder

    def connect(self) -> _socket.socket | None:
        """Connect without blocking; None if the listener's queue is full just now.

        Raises:
            NotListening: nothing listens there.
            Forbidden: the user may not open the socket.
            NoDaemon: the path cannot be a swipr socket, or somebody else listens on it.
        """
        size = len(os.fsencode(self.path))
        if size > MAX_PATH or "\0" in self.path:
            raise NoDaemon(
                f"a socket's path may have {MAX_PATH} bytes, and no NUL; this one has {size}:"
                f" {self.path}"
            )
        if self.kind == "private":
            check_folder(os.path.dirname(self.path))
        connection = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        )
        try:
            connection.connect(self.path)
            if self.kind == "private":
                self._check_peer(connection)
        except BlockingIOError:
            connection.close()
            return None
        except SwiprError:
            connection.close()
            raise
        except OSError as error:
            connection.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                raise NotListening(error.strerror) from error
            if error.errno in (errno.EACCES, errno.EPERM):
                raise Forbidden(self._forbidden()) from error
            raise NoDaemon(f"cannot connect to {self.path}: {error.strerror}") from error
        return connection

    def no_daemon(self, why: str) -> NoDaemon:
        """Make the error that says that nobody listens, and what helps."""
        text = f"no daemon answers on {self.path} ({why})"
        if self.kind == "system":
            return NoDaemon(f"{text}; {remedy(self.unit)}")
        if self.kind == "private":
            text += "; 'swiprctl predict' would start one"
            if os.path.isdir(SYSTEM_FOLDER):
                text += f"; for the system's daemon: {remedy('swiprd')}"
        return NoDaemon(text)

    def _check_peer(self, connection: _socket.socket) -> None:
        """In a private folder only the user, or root, may be the one who listens."""
        found = connection.getsockopt(
            _socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEER_CREDENTIALS.size
        )
        uid = _PEER_CREDENTIALS.unpack(found)[1]
        if uid not in (0, os.geteuid()):
            raise NoDaemon(f"uid {uid} listens on {self.path}, which is not yours: not used")

    def _forbidden(self) -> str:
        text = f"no permission to open {self.path}"
        try:
            found = os.stat(self.path)
        except OSError:
            return f"{text}: its folder is closed to you"
        if found.st_mode & stat.S_IWOTH:
            return text
        if not found.st_mode & stat.S_IWGRP:
            return f"{text}: only its owner (uid {found.st_uid}) may"
        import grp

        try:
            group = grp.getgrgid(found.st_gid).gr_name
        except KeyError:
            group = str(found.st_gid)
        return f"{text}: ask to be added to group {group}, then log in anew"


def choose(asked: str | None = None, model: str | None = None) -> Address:
    """Find the socket to use.

    Args:
        model: the name of a system's model, or with a slash in it a model's folder: a private
            daemon serves that.

    Raises:
        UsageError: the model's name cannot be one, or a socket and a model were both asked for, by
            arguments or, where there are none, by variables.
        CannotOpen: there is no model in the folder.
        NoDaemon: no daemon for the model that was named.
    """
    if asked is None and model is None:
        asked = os.environ.get("SWIPR_SOCKET") or None
        model = os.environ.get("SWIPR_MODEL") or None
        if asked is not None and model is not None:
            raise UsageError(
                "SWIPR_SOCKET and SWIPR_MODEL are both set: unset one of them,"
                " or give --socket or --model"
            )
        if model is not None:
            try:
                return choose(None, model)
            except SwiprError as error:
                raise type(error)(f"SWIPR_MODEL: {error}") from error
    if model is not None:
        if asked is not None:
            raise UsageError("a socket and a model: give one of them")
        if not model or "\0" in model:
            raise UsageError(f"not a model's name: {model!r}")
        if "/" in model:
            return _serving(model)
        if model.startswith("."):
            raise UsageError(f"not a model's name: {model!r}; a folder's has a slash: ./{model}")
    elif asked is not None:
        if not asked:
            raise UsageError("the socket's path is empty")
        return Address(asked, "explicit")
    name = DEFAULT_NAME if model is None else model
    system = f"{SYSTEM_FOLDER}/{name}.sock"
    unit = "swiprd" if name == DEFAULT_NAME else f"swiprd@{name}"
    if os.path.lexists(system):
        return Address(system, "system", unit)
    if name != DEFAULT_NAME:
        # The user's own daemon serves the default model: an answer of that one would be a lie.
        text = f"no daemon serves a model named {name}: {system} is not there;"
        if os.path.exists(f"{name}/model.toml"):
            raise NoDaemon(f"{text} for the folder of that name say --model ./{name}")
        from swiprctl.hints import no_model

        if hint := no_model(name):
            raise NoDaemon(f"{text} {hint}")
        raise NoDaemon(f"{text} 'systemctl enable --now {unit}.socket' sets one up; {remedy(unit)}")
    return Address(f"{private_folder()}/{DEFAULT_NAME}.sock", "private")


def _serving(folder: str) -> Address:
    """Name the socket of the user's own daemon for a model's folder.

    The folder alone decides. That it has been edited is for the daemon to notice, which leaves
    then: the next request starts another.
    """
    import hashlib

    folder = os.path.realpath(folder)
    try:
        os.stat(f"{folder}/model.toml")
    except OSError as error:
        from swiprctl.hints import no_model

        text = f"{folder}/model.toml: {error.strerror}"
        hint = no_model(folder) or "'swiprd pack' makes a model's folder"
        raise cannot_open(error, f"{text}; {hint}") from error
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=8)
    return Address(f"{private_folder()}/{digest.hexdigest()}.sock", "private", folder=folder)


def private_folder() -> str:
    """Name the folder of the user's own sockets; it need not be there."""
    uid = os.geteuid()
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), RUNTIME_FOLDER.format(uid=uid)):
        if base.startswith("/"):
            try:
                # sudo(8) may hand root the user's: the owner decides whose it is.
                if os.stat(base).st_uid == uid:
                    return f"{base.rstrip('/')}/swipr"
            except OSError:
                pass
    folder = FALLBACK_FOLDER.format(uid=uid)
    try:
        taken = os.lstat(folder).st_uid != uid
    except OSError:
        return folder
    return _another(folder) if taken else folder


def _another(folder: str) -> str:
    """Find or make a folder in the place of one that somebody else has made under its name.

    Its own name cannot be foretold, and is found again by its owner. The names begin with the
    time, so that all who look agree on the oldest.
    """
    import time

    made = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    fresh = f"{folder}-{made:016x}-{os.urandom(4).hex()}"
    for make in (False, True):
        try:
            if make:
                os.mkdir(fresh, 0o700)
            with os.scandir(os.path.dirname(folder)) as entries:
                ours = [one.path for one in entries if _is_ours(one, f"{folder}-")]
        except OSError:
            break
        if ours:
            return min(ours)
    return folder  # of which the error then tells


def _is_ours(entry: os.DirEntry[str], prefix: str) -> bool:
    if not entry.path.startswith(prefix):
        return False
    try:
        check_folder(entry.path)
    except (NoDaemon, NotListening):
        return False
    return True


def check_folder(folder: str, *, make: bool = False) -> None:
    """See that a private folder is a real one, the user's, and closed to everybody else.

    Raises:
        NotListening: it is not there (and was not to be made).
        NoDaemon: it is not safe to use, or cannot be made.
    """
    try:
        if make:
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                pass
        found = os.lstat(folder)
    except FileNotFoundError as error:
        if make:
            raise NoDaemon(f"cannot make {folder}: {error.strerror}") from error
        raise NotListening(error.strerror) from error
    except OSError as error:
        raise NoDaemon(f"cannot use {folder}: {error.strerror}") from error
    wrong = ""
    if not stat.S_ISDIR(found.st_mode):
        wrong = "it is not a directory"
    elif found.st_uid != os.geteuid():
        wrong = f"it belongs to uid {found.st_uid}"
    elif found.st_mode & 0o077:
        wrong = f"its mode is {stat.S_IMODE(found.st_mode):04o}"
    if wrong:
        raise NoDaemon(
            f"{folder} must be a directory of your own with mode 0700, but {wrong}; remove it"
        )


def remedy(unit: str) -> str:
    """Say what to look at and do when systemd holds no socket for us."""
    return (
        f"see 'systemctl status {unit}.socket'; if the start limit was hit:"
        f" 'systemctl reset-failed {unit}.service; systemctl start {unit}.socket'"
    )
