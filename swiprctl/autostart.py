"""No daemon there? Start a private one the way systemd would: bind, pass fd 3, LISTEN_FDS.

Only for the user's own socket, and only imported when nothing answers on it. A lock makes two
starters race safely: one binds and starts, the other finds a socket that is listened on. The socket
listens before the daemon exists, so that requests of other clients wait in its queue and none is
lost. Nothing here waits for the daemon to be ready.

Forked by hand: subprocess.Popen cannot set LISTEN_PID to the child's own pid or give a descriptor
the number 3, and would leave its zombie to a client that lives on.
"""

from __future__ import annotations

import _socket
import fcntl
import importlib.util
import os
import select
import stat
import sys
import time

from swiprctl.address import NotListening, check_folder
from swiprctl.errors import NoDaemon, SwiprError
from swiprctl.leftovers import sweep, try_lock, unlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from swiprctl.address import Address

IDLE_TIMEOUT = 300
_BACKLOG = 128
_LOCK_PATIENCE = 5.0
_LOG_LIMIT = 1 << 20
_LISTEN_FD = 3
_STATUS = 4  # bytes of a status of waitpid(2)

_NOT_FOR_THE_CHILD = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "SWIPR_SOCKET",
    "SWIPR_MODEL",
)
"""Variables by which the daemon would report to the service manager of the client's process."""


class Child:
    """A daemon that was started here; it outlives this process.

    Its parent is the reaper, a process between the two: as long as `status_pipe` is open, it waits
    for the daemon and writes its exit status to the pipe. Then it exits and leaves the daemon to
    init. So a daemon that ends later leaves no zombie in a client that lives on.
    """

    def __init__(self, reaper: int, status_pipe: int, log: str, log_offset: int) -> None:
        self._reaper = reaper
        self._status_pipe = status_pipe
        self._log = log
        self._log_offset = log_offset
        self._status: int | None = None

    def gone(self) -> bool:
        """Whether it has ended, or its reaper has, so that its end cannot be known."""
        if self._status_pipe >= 0 and select.select([self._status_pipe], [], [], 0)[0]:
            if status := os.read(self._status_pipe, _STATUS):
                self._status = os.waitstatus_to_exitcode(int.from_bytes(status, sys.byteorder))
            self.forget()
        return self._status_pipe < 0

    def forget(self) -> None:
        """Close the pipe, so that the reaper exits: how the daemon ends is not asked any more."""
        if self._status_pipe < 0:
            return
        os.close(self._status_pipe)
        self._status_pipe = -1
        try:
            os.waitpid(self._reaper, 0)  # it exits at once
        except ChildProcessError:
            pass  # the program that uses this client has reaped it

    def last_words(self) -> NoDaemon:
        """Make the error for a daemon that ended before it answered anybody."""
        self._wait(1.0)
        self.forget()
        how = "ended"
        if self._status is not None:
            how = f"exited with {self._status}"
            if self._status < 0:
                how = f"was killed by signal {-self._status}"
        text = f"the daemon was started but {how} before it answered; its log is {self._log}"
        last = self._last_line()
        return NoDaemon(f"{text} and ends: {last}" if last else text)

    def _wait(self, seconds: float) -> None:
        """Wait for its exit status, which comes a little after its socket is closed."""
        if self._status_pipe >= 0:
            select.select([self._status_pipe], [], [], seconds)
        self.gone()

    def _last_line(self) -> str:
        try:
            descriptor = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return ""
        try:
            begin = max(self._log_offset, os.fstat(descriptor).st_size - 4096)
            lines = os.pread(descriptor, 4096, begin).decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        finally:
            os.close(descriptor)
        return lines[-1].strip() if lines else ""


def start(address: Address) -> Child | None:
    """Start a daemon on a private socket; None if somebody else has just done it.

    Raises:
        NoDaemon: there is no daemon installed, or it cannot be started here.
    """
    missing = [name for name in ("swiprd", "torch", "torchvision") if not _importable(name)]
    if missing or not sys.executable:
        raise NoDaemon(
            "no daemon answers, and only the client is installed here"
            f" ({', '.join(missing) or 'no Python'} not found):"
            " 'apt install swiprd' or pip install 'swipr[daemon]' brings the daemon"
        )
    folder, base = os.path.dirname(address.path), address.path.removesuffix(".sock")
    check_folder(folder, make=True)
    try:
        lock = _lock(f"{address.path}.lock")
        try:
            try:
                answered = address.connect()
            except NotListening:
                pass
            else:
                if answered is not None:
                    answered.close()
                return None
            child = _bind_and_spawn(address.path, f"{base}.log", address.folder)
        finally:
            unlock(f"{address.path}.lock", lock)
    except SwiprError:
        raise
    except OSError as error:
        raise NoDaemon(f"cannot start a daemon on {address.path}: {error.strerror}") from error
    sweep(folder)
    return child


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _lock(name: str) -> int:
    """Take the lock by polling: flock(2) has no timeout, and the holder needs milliseconds."""
    deadline = time.monotonic() + _LOCK_PATIENCE
    while (lock := try_lock(name)) is None:
        if time.monotonic() >= deadline:
            raise NoDaemon(f"another process holds {name} and starts no daemon")
        time.sleep(0.01)
    return lock


def _bind_and_spawn(path: str, log_path: str, model: str) -> Child:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise NoDaemon(f"{path} is in the way: it is not a socket")
        os.unlink(path)  # nobody listens on it any more
    except FileNotFoundError:
        pass
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    log = null = status_pipe = status_end = -1
    try:
        listener.bind(path)
        os.chmod(path, 0o600)  # not the umask, which is all threads': the folder is closed anyway
        log = os.open(
            log_path,
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        if os.fstat(log).st_size > _LOG_LIMIT:
            os.ftruncate(log, 0)
        offset = os.fstat(log).st_size
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        status_pipe, status_end = os.pipe2(os.O_CLOEXEC)
        listener.listen(_BACKLOG)
        try:
            pid = os.fork()
        except OSError:
            os.unlink(path)
            raise
        if pid == 0:
            _be_reaper(listener.fileno(), null, log, status_end, model)
        child = Child(pid, status_pipe, log_path, offset)
        status_pipe = -1
        return child
    finally:
        listener.close()
        for descriptor in (log, null, status_pipe, status_end):
            if descriptor >= 0:
                os.close(descriptor)


def _be_reaper(listener: int, null: int, log: int, status_end: int, model: str) -> NoReturn:
    """Be the reaper: fork the daemon, write its exit status to the pipe, or exit if that closes."""
    try:
        pid = os.fork()
        if pid == 0:
            _become_daemon(listener, null, log, model)
        os.setsid()  # a ^C at the client's terminal must not end this process
        os.dup2(null, 0)  # holds no pipe or terminal of the client's open
        os.dup2(null, 1)
        os.dup2(log, 2)
        status_end = os.dup2(status_end, _LISTEN_FD)
        os.closerange(_LISTEN_FD + 1, os.sysconf("SC_OPEN_MAX"))
        ended = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(status_end, 0)  # POLLERR: the other end is closed
        poll.poll()
        _, status = os.waitpid(pid, os.WNOHANG)
        if select.select([ended], [], [], 0)[0]:
            try:
                os.write(status_end, status.to_bytes(_STATUS, sys.byteorder))
            except BrokenPipeError:
                pass  # the client has closed its end just now
    except BaseException as error:
        os.write(2, f"swiprctl: cannot start the daemon: {error}\n".encode(errors="replace"))
    finally:
        os._exit(0)


def _become_daemon(listener: int, null: int, log: int, model: str) -> NoReturn:
    """Be the daemon: only system calls until exec, as a thread of the client may hold a lock."""
    try:
        os.setsid()
        os.umask(0o077)
        # Each is copied above the numbers that are about to be taken before any of them is.
        listener, null, log = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (listener, null, log))
        for source, target in ((null, 0), (log, 1), (log, 2), (listener, _LISTEN_FD)):
            os.dup2(source, target)
        os.closerange(_LISTEN_FD + 1, os.sysconf("SC_OPEN_MAX"))
        environ = {k: v for k, v in os.environ.items() if k not in _NOT_FOR_THE_CHILD}
        if path := environ.get("PYTHONPATH"):
            parts = [os.path.abspath(part) for part in path.split(os.pathsep) if part]
            environ["PYTHONPATH"] = os.pathsep.join(parts)
        environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="swipr")
        os.chdir("/")  # holds no mount busy
        # -P: what lies in the current directory is not to be imported.
        command = [sys.executable, "-P", "-m", "swiprd", "serve", "--private"]
        command += ["--idle-timeout", str(IDLE_TIMEOUT), *(["--model", model] if model else [])]
        os.execve(sys.executable, command, environ)
    except BaseException as error:
        os.write(2, f"swiprctl: cannot start the daemon: {error}\n".encode(errors="replace"))
    finally:
        os._exit(127)
