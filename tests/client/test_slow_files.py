"""Images on a file system whose server does not answer: the client goes on, and ends when told."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fuseserver
import pytest
from conftest import StartDaemon
from daemonprocess import wait_until
from peer import Connection, Peer

from swiprctl import Client, Prediction, inputs
from swiprctl.errors import BadImage, CannotOpen, DeadlineExceeded, TooLarge
from swiprctl.mounts import leads_into, lies_on

pytestmark = pytest.mark.timeout(120)

takes_fuse = pytest.mark.skipif(not fuseserver.possible(), reason="takes root and /dev/fuse")

DATA = bytes(range(256)) * 300
HANGING = ["lookup", "open", "stat", "read", "direct-read"]


def size(connection: Connection) -> None:
    """Answer each image with its size in bytes; none may be a file of the slow file system."""

    def look(descriptor: int) -> None:
        assert "/fuse/" not in os.readlink(f"/proc/self/fd/{descriptor}")

    while True:
        asked = connection.asked(look=look)
        assert asked.image is not None
        connection.answer(asked, float(len(asked.image)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `local.jpg`, and in `fuse` a mount whose server answers some of the time."""
    monkeypatch.setattr(inputs, "LOOK_AGAIN", 0.0)  # it has been mounted just now
    (tmp_path / "local.jpg").write_bytes(DATA)
    with fuseserver.mounted(tmp_path / "fuse", tmp_path / "local.jpg"):
        yield tmp_path


def left(folder: Path) -> list[str]:
    """Processes of a client that was given a path in the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"swiprctl" in line and os.fsencode(folder) in line:
                found.append(pid)
    return found


@contextlib.contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "swiprctl", "predict", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SWIPR_SOCKET": str(folder / "s")},
    )
    try:
        yield process
    finally:
        process.kill()
        fuseserver.release(folder / "fuse")  # else one that hangs cannot even be killed
        process.communicate()
        wait_until(lambda: not left(folder), "those that hung are gone")


@takes_fuse
@pytest.mark.parametrize("name", HANGING)
def test_a_deadline_ends_it(folder: Path, name: str) -> None:
    # While a name is looked up, the kernel has nobody else look one up in that folder.
    good = "fuse/good" if name != "lookup" else "local.jpg"
    paths = [str(folder / one) for one in ("local.jpg", f"fuse/{name}", good, "local.jpg")]
    with Peer(folder / "s", size), started(folder, "--timeout=2", "-h", *paths) as process:
        out, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert out == f"{len(DATA)}\n".encode() * 3
        assert err.decode() == (
            f"swiprctl: {paths[1]}: its file system did not give it within 2 s\n"
        )


@takes_fuse
@pytest.mark.parametrize("name", HANGING)
def test_an_interrupt_ends_it(folder: Path, name: str) -> None:
    paths = [str(folder / "local.jpg"), str(folder / "fuse" / name)]
    with Peer(folder / "s", size), started(folder, "-h", *paths) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{len(DATA)}\n".encode()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stdout.read() == b"", "nobody holds the pipe open, either"


@takes_fuse
@pytest.mark.parametrize("name", ["good", "direct-good", "flush", "statfs"])
def test_what_can_be_read_is_answered(folder: Path, name: str) -> None:
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    seen: list[bytes | None] = []

    def script(connection: Connection) -> None:
        def look(descriptor: int) -> None:
            assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & seals == seals

        while True:
            asked = connection.asked(look=look)
            seen.append(asked.image)
            connection.answer(asked, 1.0)

    (folder / "link").symlink_to("fuse")
    paths = [str(folder / "fuse" / name), str(folder / "link" / name)]
    with Peer(folder / "s", script), started(folder, *paths) as process:
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, b"")
        assert out.count(b"\n") == 2
    assert seen == [DATA] * 2


@takes_fuse
def test_descriptors_and_files_are_read_there_too(folder: Path) -> None:
    with Peer(folder / "s", size), contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(f"{folder}/s", timeout=2))
        hanging = os.open(folder / "fuse" / "stat", os.O_RDONLY)
        good = os.open(folder / "fuse" / "good", os.O_RDONLY)
        with pytest.raises(DeadlineExceeded, match="its file system"):
            client.predict(hanging)
        assert client.predict(good).probabilities == (len(DATA),)
        os.lseek(good, 100, os.SEEK_SET)
        assert client.predict(good).probabilities == (len(DATA) - 100,)
        file = stack.enter_context(open(folder / "fuse" / "good", "rb"))
        assert client.predict(file).probabilities == (len(DATA),)
        with pytest.raises(CannotOpen, match="No such file"):
            client.predict(folder / "fuse" / "missing")
        with pytest.raises(CannotOpen, match="it is a directory"):
            client.predict(folder / "fuse")
        for descriptor in (hanging, good):
            os.close(descriptor)
        file.close()
        fuseserver.release(folder / "fuse")


@takes_fuse
def test_one_that_is_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiprctl.inputs.MAX_STREAM", len(DATA) - 1)
    with (
        Peer(folder / "s", size),
        Client(f"{folder}/s") as client,
        pytest.raises(TooLarge, match=f"more than {len(DATA) - 1} bytes"),
    ):
        client.predict(folder / "fuse" / "good")


@takes_fuse
def test_a_client_that_is_given_up_leaves_nobody(folder: Path) -> None:
    with Peer(folder / "s", size), Client(f"{folder}/s") as client:
        stream = client.predict_many([folder / "local.jpg", folder / "fuse" / "read"])
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        answers = client.predict_many([folder / "local.jpg"] * 3)
        assert all(isinstance(answer, Prediction) for _, answer in answers)


@takes_fuse
def test_the_daemon_gets_memory_and_never_the_file(start_daemon: StartDaemon, folder: Path) -> None:
    """Nothing of it hangs there."""
    daemon = start_daemon().wait_ready()
    with Client(str(daemon.path), timeout=3) as client:
        for name in ("read", "stat", "flush"):
            with contextlib.suppress(DeadlineExceeded, BadImage):
                client.predict(folder / "fuse" / name)
    fuseserver.release(folder / "fuse")
    assert daemon.status()["intakes"]["waiting"] == 0
    assert daemon.status()["kills"]["total"] == 0


@takes_fuse
def test_many_at_once(folder: Path) -> None:
    with Peer(folder / "s", size), Client(f"{folder}/s") as client:
        names = ["good", "direct-good", "flush"] * 20
        answers = [one for _, one in client.predict_many(folder / "fuse" / name for name in names)]
    assert [getattr(one, "probabilities", one) for one in answers] == [(len(DATA),)] * 60
    wait_until(lambda: threading.active_count() == 1, "only this")


# -- folders


@pytest.fixture
def walked(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with images before and behind a mount, of which the server says what is listed."""
    for name in ("a.jpg", "z.jpg", "sub/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\xd8\xff" + DATA)
    with fuseserver.mounted(tmp_path / "fuse", tmp_path / "a.jpg", listed=request.param):
        yield tmp_path


LISTED = ["direct-good", "flush", "good", "open", "statfs"]


@takes_fuse
@pytest.mark.parametrize("walked", [LISTED], indirect=True, ids=["listed"])
def test_a_walk_goes_on_behind_what_hangs(walked: Path) -> None:
    fuse = walked / "fuse"
    images = ["a.jpg", "fuse/direct-good", "fuse/flush", "fuse/good", "fuse/statfs"]
    images += ["sub/b.jpg", "z.jpg"]
    words = ("--timeout=3", "-r", str(walked))
    with Peer(walked / "s", size), started(walked, *words) as process:
        out, err = process.communicate(timeout=40)
    assert err.decode() == (f"swiprctl: {fuse}/open: its file system did not answer within 3 s\n")
    assert out.decode().splitlines() == [f"{walked}/{name},{len(DATA) + 3}" for name in images]
    assert process.returncode == 1


@takes_fuse
@pytest.mark.parametrize("walked", [None], indirect=True, ids=["never listed"])
def test_a_folder_that_hangs_costs_its_own_images_only(walked: Path) -> None:
    words = ("--timeout=1", "-r", str(walked))
    with Peer(walked / "s", size), started(walked, *words) as process:
        out, err = process.communicate(timeout=40)
    assert err.decode() == (f"swiprctl: {walked}/fuse: its file system did not answer within 1 s\n")
    assert out.decode().splitlines() == [
        f"{walked}/{name},{len(DATA) + 3}" for name in ("a.jpg", "sub/b.jpg", "z.jpg")
    ]


@takes_fuse
@pytest.mark.parametrize("walked", [None], indirect=True, ids=["never listed"])
def test_an_interrupt_ends_a_walk(walked: Path) -> None:
    words = ("--timeout=60", "-r", str(walked))
    with Peer(walked / "s", size), started(walked, *words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{walked}/a.jpg,{len(DATA) + 3}\n".encode()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stdout.read() == b"", "nobody holds the pipe open, either"


@takes_fuse
@pytest.mark.parametrize(
    "walked",
    [["direct-open", "direct-read", "late-open", "statfs"]],
    indirect=True,
    ids=["most hang"],
)
def test_a_server_that_hangs_again_and_again_is_given_up(walked: Path) -> None:
    words = ("--timeout=1", "-r", "-h", str(walked / "fuse"), str(walked / "a.jpg"))
    with Peer(walked / "s", size), started(walked, *words) as process:
        out, err = process.communicate(timeout=40)
    fuse = walked / "fuse"
    late = "its file system did not answer within 1 s"
    assert err.decode().splitlines() == [
        f"swiprctl: {fuse}/direct-open: {late}",
        f"swiprctl: {fuse}/direct-read: {late}",
        f"swiprctl: {fuse}/late-open: {late}; nothing behind it in {fuse} is looked at",
    ]
    assert out == f"{len(DATA) + 3}\n".encode(), "the image that is named behind it"


# -- an output file


class Counting:
    """A daemon that answers each image with its size, and counts them."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, connection: Connection) -> None:
        while True:
            asked = connection.asked()
            if asked.op == "model":
                connection.reply(asked.id, model="peer@1", labels=["size"])
                continue
            assert asked.image is not None
            self.images += 1
            values = [float(len(asked.image))]
            connection.reply(asked.id, probabilities=values, model="peer@1", labels=["size"])


@takes_fuse
@pytest.mark.parametrize("name", ["lookup", "read", "open"])
def test_work_on_a_slow_file_system_can_be_gone_on_with(folder: Path, name: str) -> None:
    good = "fuse/good" if name != "lookup" else "local.jpg"
    paths = [str(folder / one) for one in ("local.jpg", f"fuse/{name}", good, "local.jpg")]
    words = ("--timeout=2", f"--output={folder}/rows.csv", "--resume", *paths)
    counting = Counting()
    with contextlib.ExitStack() as stack:
        stack.enter_context(Peer(folder / "s", counting))
        for _ in range(2):
            process = stack.enter_context(started(folder, *words))
            _, err = process.communicate(timeout=40)
            late = "its file system did not give it within 2 s"
            assert err.decode() == f"swiprctl: {paths[1]}: {late}\n"
            assert process.returncode == 1
            rows = (folder / "rows.csv").read_text().splitlines()
            assert rows == [f"{path},{len(DATA)}" for path in paths if path != paths[1]]
            assert counting.images == 3, "what has a row is not asked again"


@takes_fuse
@pytest.mark.parametrize("walked", [LISTED], indirect=True, ids=["listed"])
def test_a_walk_into_a_file_can_be_gone_on_with(walked: Path) -> None:
    output = walked / "rows.csv"
    words = ("--timeout=2", "-r", f"--output={output}", "--resume", str(walked))
    counting = Counting()
    with contextlib.ExitStack() as stack:
        stack.enter_context(Peer(walked / "s", counting))
        for _ in range(2):
            process = stack.enter_context(started(walked, *words))
            process.communicate(timeout=40)
            assert process.returncode == 1
            assert len(output.read_text().splitlines()) == 7
            assert counting.images == 7


# -- where a path leads


def test_where_a_path_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "a/b", "slow", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "to").symlink_to("../slow")
    (tmp_path / "a" / "through").symlink_to("to/x/../..")
    (tmp_path / "a" / "absolute").symlink_to(tmp_path / "a" / "to")
    (tmp_path / "a" / "away").symlink_to(tmp_path / "other")
    (tmp_path / "loop").symlink_to("loop")
    slow = {f"{tmp_path}/slow"}
    monkeypatch.chdir(tmp_path / "a")
    leading = ["to", "to/x.jpg", "./b/../to/x", "through/a", "absolute/x", "../slow/x"]
    leading += [f"{tmp_path}/slow", f"{tmp_path}//slow/x", f"{tmp_path}/a/./to"]
    for path in leading:
        assert leads_into(path, slow), path
    staying = ["b", "away/x", "", "x", "../slower/x", "../loop", "../loop/x", "a\0b", "/"]
    staying += [f"{tmp_path}/slo", f"{tmp_path}/other", "/dev/null", "/../.."]
    for path in staying:
        assert not leads_into(path, slow), path
    slow = {str(tmp_path / "a")}
    assert leads_into("x", slow)
    assert leads_into("../x", slow), "the way leads through it"


def test_which_mount_a_descriptor_is_on(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file:
        with open(f"/proc/self/fdinfo/{file.fileno()}") as info:
            number = next(line.split()[1] for line in info if line.startswith("mnt_id"))
        assert lies_on(file.fileno(), {number})
        assert not lies_on(file.fileno(), {"x"})
    assert not lies_on(file.fileno() if not file.closed else 1_000_000, {number})
