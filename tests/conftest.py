"""Fixtures: models, daemons, and one that fails any test that leaves something behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from daemonprocess import DaemonProcess, own_children
from fronts import ALONE, CONNECTIONS, MAX_IMAGE, MAX_INLINE, MAX_PIXELS, QUEUE, SECONDS, png
from vitals import Vitals


def _no_signal_ignored() -> None:
    """Undo what nohup and a shell's background leave behind: processes of the tests inherit it."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, None)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler or signal.SIG_DFL)


_no_signal_ignored()

hypothesis.settings.register_profile("swipr", deadline=None)  # a busy host is no fault of ours
hypothesis.settings.load_profile("swipr")


@pytest.fixture(scope="session", autouse=True)
def _no_daemon_of_the_users() -> Iterator[None]:
    """What variables of whoever runs the tests name is not what a test asks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SWIPR_MODEL", "SWIPR_SOCKET"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_record_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that the tests pack are not to be trusted by whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


def _open_descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
    return found


def _left_open(before: dict[str, str]) -> dict[str, str]:
    left = {n: to for n, to in _open_descriptors().items() if n not in before}
    # What a library opens once and keeps is not the test's; what it does twice is.
    return {n: to for n, to in left.items() if not to.startswith("/") or "/dev/shm" in to}


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which this process has a descriptor or a child that it had not before."""
    children = set(own_children())
    before = _open_descriptors()
    yield
    if _left_open(before):
        gc.collect()  # what only a cycle holds is not a leak. With torch it takes 0.3 s: not always
    left = _left_open(before)
    assert not left, f"{request.node.name} left descriptors open: {left}"
    orphans = set(own_children()) - children
    assert not orphans, f"{request.node.name} left children: {orphans}"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small classifier with seeded weights."""
    from modelfolders import make_folder

    return make_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """A few different JPEGs."""
    from modelfolders import photo

    return [photo(seed) for seed in range(8)]


@pytest.fixture(scope="session")
def slow_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose decoder is in C for a second or more."""
    from modelfolders import slow_png

    path = tmp_path_factory.mktemp("slow") / "slow.png"
    path.write_bytes(slow_png())
    return path


StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def start_daemon(tmp_path: Path, tiny_model: Path) -> Iterator[StartDaemon]:
    """Start daemons of the test's own; they are gone when it ends."""
    started: list[DaemonProcess] = []

    def start(
        *arguments: str, model: Path = tiny_model, environment: dict[str, str] | None = None
    ) -> DaemonProcess:
        folder = tmp_path / f"daemon{len(started)}"
        shape = [] if "--workers" in arguments else ["--workers=1", "--threads=1", "--batch=1"]
        daemon = DaemonProcess(folder, *shape, *arguments, model=model, environment=environment)
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        daemon.end()


@pytest.fixture(scope="session")
def _shared_daemon(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(
        tmp_path_factory.mktemp("shared"),
        *("--workers=1", "--threads=1", "--batch=1"),
        model=tiny_model,
    )
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture
def daemon(_shared_daemon: DaemonProcess) -> DaemonProcess:
    """A daemon that many tests share: they must not stop it, nor lean on its counts."""
    assert _shared_daemon.process.poll() is None, _shared_daemon.log.read_text()
    return _shared_daemon


@pytest.fixture(scope="session")
def _narrow(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(
        tmp_path_factory.mktemp("narrow"),
        *ALONE,
        *(f"--connections={CONNECTIONS}", f"--queue={QUEUE}", f"--max-inline={MAX_INLINE}"),
        *("--first-byte=60", "--stall=60"),
        model=tiny_model,
    )
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture(scope="session")
def _strict(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(
        tmp_path_factory.mktemp("strict"),
        *ALONE,
        *(f"--first-byte={SECONDS}", f"--stall={SECONDS}", f"--slow-reader={SECONDS}"),
        *(f"--max-image={MAX_IMAGE}", f"--max-pixels={MAX_PIXELS}"),
        model=tiny_model,
    )
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture
def roomy(daemon: DaemonProcess, photos: list[bytes]) -> Iterator[DaemonProcess]:
    """The shared daemon, with every limit as shipped; unharmed afterwards."""
    vitals = Vitals(daemon, photos[0])
    yield daemon
    vitals.check()


@pytest.fixture
def narrow(_narrow: DaemonProcess, photos: list[bytes]) -> Iterator[DaemonProcess]:
    """A daemon with few places; unharmed afterwards."""
    vitals = Vitals(_narrow, photos[0])
    yield _narrow
    vitals.check()


@pytest.fixture
def strict(_strict: DaemonProcess) -> Iterator[DaemonProcess]:
    """A daemon with little patience and low limits on images; unharmed afterwards."""
    vitals = Vitals(_strict, png(20, 20))
    yield _strict
    vitals.check()


@pytest.fixture
def nothing() -> Iterator[int]:
    """A descriptor to send around."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def photo_file(tmp_path: Path, photos: list[bytes]) -> Iterator[int]:
    """A descriptor of a file with the first photo."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photos[0])
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)
