"""A model's folder that is edited under a daemon of the user's own: the next request takes the
change, the daemon that has the old one leaves, and nothing of it stays behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemonprocess import PATIENCE, is_alive, is_intake, signal_if_there, wait_until
from modelfolders import make_folder, photo

from swiprctl import Client
from swiprd.folder.edits import Edits

pytestmark = [pytest.mark.timeout(240), pytest.mark.long]

EDITS = int(os.environ.get("SWIPR_TEST_EDITS", "3"))
"""Each costs a start of a daemon, seconds."""


class Desk:
    """Somebody's model, and the daemons that serve it."""

    def __init__(self, folder: Path) -> None:
        self.model = make_folder(folder / "model", extra="[serve]\nworkers = 1\nthreads = 1\n")
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700)
        self.photo = folder / "x.jpg"
        self.photo.write_bytes(photo(1))

    def edit(self, name: str) -> None:
        """Give the model another name, as an editor does: a new file in the place of the old."""
        file = self.model / "model.toml"
        fresh = self.model / "model.toml.new"
        fresh.write_text(re.sub(r'(?m)^name = ".*"$', f'name = "{name}"', file.read_text()))
        fresh.rename(file)

    def ask(self, *more: str, limits: str = ":") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *("sh", "-c", f'{limits}; exec "$0" "$@"'),
                *(sys.executable, "-P", "-m", "swiprctl", "--model", f"{self.model}/"),
                *("predict", "--with-model", str(self.photo), *more),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answer(self, limits: str = ":") -> tuple[str, str, int]:
        """The name of the model that answered, what was complained of, and the exit status."""
        client = self.ask(limits=limits)
        out, err = client.communicate(timeout=PATIENCE * 3)
        return out.partition("@")[0], err, client.returncode

    def daemons(self) -> list[int]:
        """Pids of the fronts that serve the folder."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            front = b"--private" in words and os.fsencode(self.model) in words
            if front and is_alive(int(name)) and not is_intake(int(name)):
                found.append(int(name))
        return found

    def files(self) -> list[str]:
        return sorted(os.listdir(self.runtime / "swipr"))

    def end(self) -> None:
        pids = self.daemons()
        for pid in pids:
            signal_if_there(pid, signal.SIGTERM)
        for pid in pids:
            wait_until(lambda pid=pid: not is_alive(pid), "the daemon is gone")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SWIPR_SOCKET", raising=False)
    desk = Desk(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(desk.runtime))
    yield desk
    desk.end()


def test_edits_leave_one_daemon_and_no_files(desk: Desk) -> None:
    for number in range(EDITS + 1):
        desk.edit(f"edit{number}")
        assert desk.answer() == (f"edit{number}", "", 0)
    wait_until(lambda: len(desk.daemons()) == 1, "all but the last have left")
    log, socket = desk.files()
    assert (Path(log).suffix, Path(socket).suffix) == (".log", ".sock")
    desk.end()
    assert desk.files() == []


def test_a_mistake_is_told_to_the_next_and_its_repair_is_taken(desk: Desk) -> None:
    assert desk.answer() == ("tiny", "", 0)
    good = (desk.model / "labels.txt").read_text()
    (desk.model / "labels.txt").write_text("")
    _, err, status = desk.answer()
    assert status == 75
    assert f"{desk.model}/labels.txt" in err
    (desk.model / "labels.txt").write_text(good)
    assert desk.answer() == ("tiny", "", 0)
    wait_until(lambda: len(desk.daemons()) == 1, "all but the last have left")


# Not `-t 1`: on a fast host a model is loaded within a second of processor time.
@pytest.mark.parametrize(("limit", "name"), [("-f 10", "RLIMIT_FSIZE"), ("-v 600000", "_AS")])
def test_limits_of_the_shell_that_started_it_hold_nobody_else_up(
    desk: Desk, limit: str, name: str
) -> None:
    out, err, status = desk.answer(f"ulimit {limit}")
    assert (out, status) == ("", 75)
    assert name in err
    assert desk.answer() == ("tiny", "", 0)
    wait_until(lambda: len(desk.daemons()) == 1, "the one that failed has left")


def test_all_who_wait_for_a_model_that_cannot_be_loaded_are_told(desk: Desk) -> None:
    (desk.model / "labels.txt").write_text("")
    for client in [desk.ask() for _ in range(4)]:
        _, err = client.communicate(timeout=PATIENCE * 3)
        assert client.returncode == 75
        assert f"{desk.model}/labels.txt" in err
        assert "ulimit" not in err
    wait_until(lambda: not desk.daemons(), "each that failed has left")
    (log,) = desk.files()
    assert "labels.txt" in (desk.runtime / "swipr" / log).read_text()


def test_many_at_once_while_it_is_edited(desk: Desk) -> None:
    """Whoever asks after an edit gets the edited model, and nobody gets nothing."""
    assert desk.answer()[0] == "tiny"
    for number in range(1, 3):
        before = [desk.ask() for _ in range(2)]
        desk.edit(f"edit{number}")
        after = [desk.ask() for _ in range(3)]
        for client in [*before, *after]:
            out, err = client.communicate(timeout=PATIENCE * 3)
            assert (err, client.returncode) == ("", 0)
            names = {f"edit{number}"}
            if client in before:
                names |= {f"edit{number - 1}", "tiny"}
            assert out.partition("@")[0] in names
    wait_until(lambda: len(desk.daemons()) == 1, "all but the last have left")


def test_nothing_in_flight_is_lost(desk: Desk) -> None:
    """One client asks on, over an edit: each of its requests is answered, the last by the new."""
    with Client(model=f"{desk.model}/") as client:
        assert client.predict(desk.photo).model.startswith("tiny@")
        answers = client.predict_many([desk.photo] * 60)
        models = [next(answers)[1].model.partition("@")[0]]  # type: ignore[union-attr]
        desk.edit("edited")
        models += [answer.model.partition("@")[0] for _, answer in answers]  # type: ignore[union-attr]
        assert len(models) == 60
        assert models == sorted(models, reverse=True), "tiny first, then edited"
        assert models[-1] == "edited"
        desk.edit("again")
        assert str(client.model()["model"]).startswith("again@")


def test_what_is_put_beside_the_model_makes_nobody_leave(desk: Desk) -> None:
    """Answers, for one: `swiprctl --model ./pets predict … >pets/rows.csv`."""
    assert desk.answer()[0] == "tiny"
    (pid,) = desk.daemons()
    (desk.model / "rows.csv").write_text("0.5,0.5\n")
    assert desk.answer()[0] == "tiny"
    assert desk.daemons() == [pid]


def test_what_a_killed_daemon_left_is_taken_away_in_time(desk: Desk) -> None:
    assert desk.answer()[0] == "tiny"
    (pid,) = desk.daemons()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "it is dead")
    runtime = desk.runtime / "swipr"
    for file in runtime.iterdir():
        os.utime(file, (0, 0), follow_symlinks=False)
        file.rename(file.with_stem("0123456789abcdef"))  # as if it had been another model's
    (runtime / "89abcdef01234567.log").write_text("of one that died just now")
    assert desk.answer()[0] == "tiny"
    assert [one for one in desk.files() if one.startswith("0123")] == []
    assert "89abcdef01234567.log" in desk.files()


def test_a_file_that_never_rests_still_gets_an_answer(desk: Desk) -> None:
    """Something may touch it all the time, or its filesystem may have no times to speak of."""
    ended = threading.Event()

    def touch() -> None:
        number = 0
        while not ended.wait(0.005):
            number += 1
            os.utime(desk.model / "labels.txt", ns=(0, number))

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        assert desk.answer() == ("tiny", "", 0)
    finally:
        ended.set()
        thread.join()


class TestWhatCounts:
    @pytest.fixture
    def pets(self, tmp_path: Path) -> Path:
        pets = tmp_path / "pets"
        (pets / "sub").mkdir(parents=True)
        (pets / "model.toml").write_text(
            "# isn't this one fine?\nname = 'pets'\nlabels = 'labels.txt'\n"
            'weights = "sub/weights.pth"  # "best.pth"\n[canary]\nimage = "cat.jpg"\n'
        )
        for name in ("labels.txt", "sub/weights.pth", "cat.jpg"):
            (pets / name).write_text("1")
        return pets

    @staticmethod
    def read(folder: Path) -> Edits:
        edits = Edits(folder)
        edits.on_edit = lambda: None
        edits.reading()
        assert not edits.stale()
        edits.settle()
        assert not edits.noticed(failed=False)
        assert not edits.noticed(failed=True)
        return edits

    @pytest.mark.parametrize("name", ["labels.txt", "sub/weights.pth", "cat.jpg", "model.toml"])
    @pytest.mark.parametrize("how", ["touched", "replaced", "removed"])
    def test_a_file_that_is_named(self, pets: Path, name: str, how: str) -> None:
        edits = self.read(pets)
        info = (pets / name).stat()
        match how:
            case "touched":
                os.utime(pets / name, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
            case "replaced":  # of the same name, size and time
                shutil.copy2(pets / name, pets / "new")
                (pets / "new").rename(pets / name)
            case _:
                (pets / name).unlink()
        assert edits.stale()
        assert edits.noticed(failed=False)

    def test_one_that_comes_may_mend_what_failed(self, pets: Path) -> None:
        edits = self.read(pets)
        (pets / "best.pth").touch()
        assert not edits.noticed(failed=False)
        assert edits.noticed(failed=True)

    def test_what_is_put_beside_it_does_not(self, pets: Path) -> None:
        edits = self.read(pets)
        (pets / "rows.csv").write_text("0.5,0.5\n")
        (pets / "pets").mkdir()
        (pets / "pets" / "cat.jpg").touch()
        assert not edits.stale()
        assert not edits.noticed(failed=True)

    def test_nobody_looks_where_a_reload_is_awaited(self, pets: Path) -> None:
        edits = self.read(pets)
        edits.on_edit = None
        (pets / "model.toml").unlink()
        assert not edits.stale()
        assert not edits.noticed(failed=True)

    @pytest.mark.parametrize("kind", ["a pipe", "a folder", "closed", "huge", "odd", "none"])
    def test_one_that_cannot_be_read(self, tmp_path: Path, kind: str) -> None:
        file = tmp_path / "model.toml"
        match kind:
            case "a pipe":
                os.mkfifo(file)
            case "a folder":
                file.mkdir()
            case "closed":
                file.touch(mode=0)
            case "huge":
                file.touch()
                os.truncate(file, 1 << 40)
            case "odd":
                file.write_bytes(b'"\xff\0" = "' + b"x" * 300 + b'" "/" "." ""\n"weights.pth')
                (tmp_path / "weights.pth").touch()
        self.read(tmp_path)
