"""private_listener.py: two who want one path, and a path that is taken, left, and taken again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import StartDaemon

from swiprd.system import private_listener
from swiprd.system.private_listener import InUse, bind

pytestmark = pytest.mark.timeout(30)

Bind = Callable[[Path], socket.socket]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


@pytest.fixture
def bound() -> Iterator[Bind]:
    """`bind()`, whose sockets are closed when the test ends."""
    sockets: list[socket.socket] = []

    def bound(path: Path) -> socket.socket:
        sockets.append(bind(path))
        return sockets[-1]

    yield bound
    for listener in sockets:
        listener.close()


def release(listener: socket.socket, *, even_if_wanted: bool) -> bool:
    """Of a listener whose path is as it was bound, or gone."""
    return private_listener.release(
        listener, private_listener.mark(listener), even_if_wanted=even_if_wanted
    )


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


class TestBind:
    def test_it_listens(self, path: Path, bound: Bind) -> None:
        listener = bound(path)
        with connect(path), listener.accept()[0]:
            pass
        assert not listener.get_inheritable()

    def test_in_the_place_of_a_dead_daemons(self, path: Path, bound: Bind) -> None:
        bind(path).close()
        assert path.is_socket()
        bound(path)
        connect(path).close()

    def test_a_live_daemon_keeps_its_own(self, path: Path, bound: Bind) -> None:
        listener = bound(path)
        with pytest.raises(InUse) as caught:
            bind(path)
        assert str(caught.value).startswith(f"{path}: another daemon answers there")
        listener.accept()[0].close()  # the question
        with connect(path), listener.accept()[0]:
            pass

    def test_a_live_daemon_with_a_full_queue_is_alive(self, path: Path) -> None:
        clients = []
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(0)
            try:
                while True:
                    clients.append(socket.socket(socket.AF_UNIX))
                    clients[-1].setblocking(False)
                    clients[-1].connect(str(path))
            except BlockingIOError:
                pass
            try:
                with pytest.raises(InUse):
                    bind(path)
            finally:
                for client in clients:
                    client.close()

    def test_what_is_no_socket_is_not_removed(self, path: Path) -> None:
        path.write_text("precious")
        with pytest.raises(OSError, match="not a socket"):
            bind(path)
        assert path.read_text() == "precious"

    def test_nor_a_link_to_nowhere(self, path: Path) -> None:
        path.symlink_to("nowhere")
        with pytest.raises(OSError, match="not a socket"):
            bind(path)
        assert path.is_symlink()

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no folder .*/nosuch: make it first"):
            bind(tmp_path / "nosuch" / "s.sock")

    def test_a_path_of_the_longest_kind(self, tmp_path: Path, bound: Bind) -> None:
        longest = tmp_path / ("x" * (107 - len(os.fsencode(tmp_path)) - 1))
        bound(longest)
        connect(longest).close()

    def test_one_that_is_too_long(self, tmp_path: Path) -> None:
        longer = tmp_path / ("x" * (108 - len(os.fsencode(tmp_path)) - 1))
        with pytest.raises(OSError, match="at most 107 bytes, and this one has 108"):
            bind(longer)
        assert os.listdir(tmp_path) == []

    def test_nothing_is_left_open_when_it_cannot_be_bound(self, path: Path) -> None:
        path.symlink_to("/nowhere/at/all")  # and the fixture that counts descriptors does the rest
        with pytest.raises(OSError, match="not a socket"):
            bind(path)


class TestRelease:
    def test_an_idle_daemon_takes_its_path_along(self, path: Path, bound: Bind) -> None:
        listener = bound(path)
        assert release(listener, even_if_wanted=False)
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            connect(path)

    def test_not_while_a_client_waits(self, path: Path, bound: Bind) -> None:
        listener = bound(path)
        with connect(path):
            assert not release(listener, even_if_wanted=False)
            assert path.is_socket()
            with listener.accept()[0]:
                pass
        assert release(listener, even_if_wanted=False)

    def test_one_that_must_leave_does(self, path: Path, bound: Bind) -> None:
        listener = bound(path)
        with connect(path):
            assert release(listener, even_if_wanted=True)
        assert not path.exists()

    def test_twice_is_once(self, path: Path, bound: Bind) -> None:
        listener = bound(path)
        assert release(listener, even_if_wanted=False)
        assert release(listener, even_if_wanted=True)

    @pytest.mark.parametrize("wanted", [False, True])
    def test_anothers_in_its_place_stays(self, path: Path, bound: Bind, wanted: bool) -> None:
        ours = bound(path)
        mark = private_listener.mark(ours)
        path.unlink()  # by hand: nobody else would
        theirs = bound(path)
        assert private_listener.release(ours, mark, even_if_wanted=wanted)
        with connect(path), theirs.accept()[0]:
            pass
        path.unlink()
        path.write_text("no socket at all")
        assert private_listener.release(ours, mark, even_if_wanted=wanted)
        assert path.exists()

    def test_a_folder_that_is_gone_is_no_error(self, tmp_path: Path, bound: Bind) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        listener = bound(folder / "s.sock")
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()
        assert release(listener, even_if_wanted=False)

    def test_the_next_one_binds_at_once(self, path: Path, bound: Bind) -> None:
        release(bound(path), even_if_wanted=True)
        bound(path)
        connect(path).close()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """The lock beside the path, as somebody holds it who is starting a daemon, or never lets go."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.unlink(f"{path}.lock")  # noqa: PTH108 - as its holders do
        os.close(descriptor)


class TestLock:
    @pytest.mark.parametrize("wanted", [False, True])
    def test_a_daemon_waits_for_nobody_who_holds_it(
        self, path: Path, bound: Bind, wanted: bool
    ) -> None:
        """Its loop must run on: who holds the lock may do so for good."""
        listener = bound(path)
        with held(path):
            assert not release(listener, even_if_wanted=wanted)
            assert path.is_socket()
        assert release(listener, even_if_wanted=wanted)
        assert not path.exists()

    def test_who_binds_waits_for_it(self, path: Path, bound: Bind) -> None:
        with held(path):
            thread = threading.Thread(target=lambda: bound(path))
            thread.start()
            thread.join(0.2)  # absence has no event
            assert thread.is_alive()
            assert not path.exists()
        thread.join(20)
        assert path.is_socket()

    def test_but_not_for_ever(
        self, path: Path, bound: Bind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(private_listener, "LOCK_PATIENCE", 0.1)
        with held(path), pytest.raises(OSError, match=rf"another process holds {path}\.lock"):
            bound(path)

    @pytest.mark.timeout(90)
    def test_sigterm_ends_a_daemon_whoever_holds_it(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        with held(daemon.path), daemon.connect() as peer:
            assert peer.ask(image=photos[0]).error is None
            assert daemon.stop() == 0
        assert daemon.path.is_socket(), "it is left to the next daemon, which replaces it"

    def test_it_is_the_users_own_and_follows_no_link(self, path: Path) -> None:
        with private_listener.lock(path):
            assert path.with_name("s.sock.lock").stat().st_mode & 0o777 == 0o600
        other = path.with_name("other.sock")
        other.with_name("other.sock.lock").symlink_to("target")
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            bind(other)
        assert not path.with_name("target").exists()

    def test_no_file_of_it_stays(self, path: Path, bound: Bind) -> None:
        listener = bound(path)
        assert os.listdir(path.parent) == [path.name]
        release(listener, even_if_wanted=True)
        assert os.listdir(path.parent) == []

    def test_a_lock_whose_file_is_gone_is_nobodys(self, path: Path) -> None:
        """Nobody holds it at the same time as another, though its file comes and goes."""
        inside: list[int] = []
        seen = []

        def hold() -> None:
            for _ in range(200):
                with private_listener.lock(path, patience=20):
                    inside.append(1)
                    seen.append(len(inside))
                    inside.pop()

        threads = [threading.Thread(target=hold) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert seen == [1] * 800
        assert not path.with_name("s.sock.lock").exists()


class TestLog:
    def test_it_goes_with_the_last_daemon(self, path: Path) -> None:
        path.with_suffix(".log").touch()
        private_listener.remove_log(path)
        assert os.listdir(path.parent) == []
        private_listener.remove_log(path)

    def test_a_successor_keeps_it(self, path: Path, bound: Bind) -> None:
        bound(path)
        path.with_suffix(".log").touch()
        private_listener.remove_log(path)
        assert path.with_suffix(".log").exists()

    def test_so_does_who_is_starting(self, path: Path) -> None:
        path.with_suffix(".log").touch()
        with held(path):
            private_listener.remove_log(path)
        assert path.with_suffix(".log").exists()


_RACER = """
import sys
from pathlib import Path
from swiprd.system.private_listener import InUse, bind
kept = []
print("here", flush=True)
for line in sys.stdin:
    try:
        kept.append(bind(Path(line.strip())))
        print("bound", flush=True)
    except InUse:
        print("in use", flush=True)
"""


@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "in a dead daemon's place"])
def test_of_two_that_race_exactly_one_binds(tmp_path: Path, stale: bool) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", _RACER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(2)
    ]
    try:
        assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["here\n"] * 2
        for number in range(100):
            path = tmp_path / f"{number}.sock"
            if stale:
                bind(path).close()
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{path}\n")
            answers = sorted(racer.stdout.readline() for racer in racers if racer.stdout)
            assert answers == ["bound\n", "in use\n"], number
            connect(path).close()
    finally:
        for racer in racers:
            racer.communicate(timeout=20)
