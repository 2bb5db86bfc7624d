"""consent.py, trusted_programs.py and `swiprd trust`: whose programs run, and whose do not."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import StartDaemon
from daemonprocess import PATIENCE, as_uid
from modelfolders import photo
from torch import nn

from swiprctl.errors import LoadingFailed
from swiprd.folder import consent, trusted_programs
from swiprd.folder.spec import load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.folder.trusted_programs import Code, NoRecord
from swiprd.inference.model import load_model

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes two uids, hence root")
SOMEBODY = 12345
JIT: Any = torch.jit  # not typed throughout


class Speaking(nn.Module):
    """A program whose code is seen to run: it prints."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("THE STRANGER'S CODE RUNS")
        return x.mean(dim=(2, 3))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a record."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder as it comes out of a stranger's archive: the user's own, and closed to others."""
    folder = tmp_path / "stran ger"
    folder.mkdir(mode=0o755)
    JIT.script(Speaking()).save(str(folder / "program.pt"))
    (folder / "labels.txt").write_text("a\nb\nc\n")
    (folder / "model.toml").write_text(
        'name = "gift"\narchitecture = "torchscript"\nweights = "program.pt"\n'
        'labels = "labels.txt"\nactivation = "softmax"\n'
    )
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The same program alone, as somebody has it who packs it."""
    file = tmp_path / "model.pt"
    JIT.script(Speaking()).save(str(file))
    return file


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    file = tmp_path / "x.jpg"
    file.write_bytes(photo(1))
    return file


def run(*arguments: object, module: str = "swiprd") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def refusal(folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_model(load_spec(folder))
    return str(caught.value)


def command_in(text: str) -> list[str]:
    """The command that a refusal names."""
    return shlex.split(text[text.index("swiprd trust") :].splitlines()[0].rstrip(")."))[1:]


@pytest.mark.usefixtures("home")
class TestAStrangersFolder:
    def test_check_runs_nothing_of_it_and_says_what_would_trust_it(
        self, stranger: Path, photograph: Path
    ) -> None:
        status, out, err = run("check", stranger, photograph)
        assert (status, out) == (78, "")
        assert "RUNS" not in err
        assert command_in(err) == ["trust", str(stranger)]
        status, out, err = run(*command_in(err))
        assert (status, err) == (0, "")
        assert "RUNS" not in out, "to trust it is not to run it"
        status, out, err = run("check", stranger, photograph)
        assert (status, err) == (0, "")
        assert "RUNS" in out

    def test_a_daemon_runs_nothing_of_it(
        self, stranger: Path, photos: list[bytes], start_daemon: StartDaemon
    ) -> None:
        daemon = start_daemon(model=stranger)
        daemon.wait_told("cannot be loaded")
        with daemon.connect() as peer:
            error = peer.ask(image=photos[0]).error
        assert isinstance(error, LoadingFailed)
        assert command_in(str(error)) == ["trust", str(stranger)]
        assert "RUNS" not in daemon.log.read_text()
        daemon.stop()
        run("trust", stranger)
        daemon = start_daemon(model=stranger).wait_ready()
        with daemon.connect() as peer:
            assert peer.ask(image=photos[0]).error is None

    def test_what_could_not_be_shown_is_not_trusted(self, stranger: Path) -> None:
        ended = subprocess.run(
            ["sh", "-c", 'exec "$0" -P -m swiprd trust "$1" >&-', sys.executable, stranger],
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
        words = "swiprd trust: standard output: it is closed\n"
        assert (ended.stderr, ended.returncode) == (words, 74)
        assert trusted_programs.read() == frozenset()

    def test_what_is_changed_afterwards_is_not_trusted(self, stranger: Path) -> None:
        run("trust", stranger)
        load_model(load_spec(stranger))
        file = stranger / "program.pt"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert "swiprd trust" in refusal(stranger)
        file.write_bytes(data + b"\0")
        assert "swiprd trust" in refusal(stranger)

    def test_one_kind_of_program_is_not_run_as_the_other(self, stranger: Path) -> None:
        run("trust", stranger)
        toml = stranger / "model.toml"
        toml.write_text(toml.read_text().replace("torchscript", "export"))
        assert "swiprd trust" in refusal(stranger)

    def test_one_too_large_to_be_known_is_refused_unread(self, stranger: Path) -> None:
        os.truncate(stranger / "program.pt", 1 << 40)  # a sparse terabyte, which nobody can read
        assert "swiprd trust" in refusal(stranger)

    def test_a_folder_that_others_can_write_does_not_matter_then(self, stranger: Path) -> None:
        run("trust", stranger)
        stranger.chmod(0o777)
        load_model(load_spec(stranger))


@pytest.mark.usefixtures("home")
class TestWhatIsHashedIsWhatIsLoaded:
    def test_a_program_that_is_swapped_in_between(
        self, stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run("trust", stranger)
        file = stranger / "program.pt"
        evil = tmp_path / "evil"
        evil.write_bytes(b"not a program at all" * 1000)
        read = trusted_programs.read

        def swap_and_read() -> frozenset[Code]:
            evil.rename(file)
            return read()

        spec = load_spec(stranger)
        loaded = consent.is_known

        def swap_after(code: Code, known: frozenset[Code]) -> bool:
            answer = loaded(code, known)
            file.write_bytes(b"\0" * file.stat().st_size)  # in place, and
            file.unlink()  # by name
            file.write_bytes(b"\0" * 10)
            return answer

        monkeypatch.setattr(consent, "is_known", swap_after)
        load_model(spec)  # what was digested was loaded, or this would be no program
        monkeypatch.undo()
        assert "swiprd trust" in refusal(stranger)
        monkeypatch.setattr(trusted_programs, "read", swap_and_read)
        assert "swiprd trust" in refusal(stranger)


class TestPack:
    def test_what_is_packed_is_trusted(
        self, program: Path, photograph: Path, home: Path, tmp_path: Path
    ) -> None:
        options = ("--architecture", "torchscript", "--labels", "a,b,c", "-o", tmp_path / "own")
        status, out, err = run("pack", program, *options)
        assert (status, err) == (0, "")
        record = home / ".local/share/swipr/trusted"
        assert str(record) in out
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
        assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
        status, out, err = run("check", tmp_path / "own", photograph)
        assert (status, err) == (0, "")

    def test_what_is_not_made_is_not_trusted(
        self, program: Path, home: Path, tmp_path: Path
    ) -> None:
        options = ("--architecture", "torchscript", "--labels", "a,b", "-o", tmp_path / "own")
        status, _, err = run("pack", program, *options)
        assert status != 0, "three outputs and two labels"
        assert "trusted" not in err
        assert not (home / ".local").exists()

    def test_where_no_record_can_be_kept_it_says_so_and_makes_it(
        self, program: Path, home: Path, tmp_path: Path
    ) -> None:
        (home / ".local").write_text("in the way")
        options = ("--architecture", "torchscript", "--labels", "a,b,c", "-o", tmp_path / "own")
        status, _, err = run("pack", program, *options)
        assert status == 0
        assert "cannot be recorded" in err
        assert (tmp_path / "own" / "model.toml").exists()


class TestRootsFolders:
    @pytest.fixture
    def roots(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        roots = tmp_path / "etc-swipr"
        roots.mkdir(mode=0o755)
        monkeypatch.setattr(consent, "ROOTS", (roots,))
        return roots

    @pytest.mark.usefixtures("home")
    def test_what_only_root_can_write_is_trusted(self, stranger: Path, roots: Path) -> None:
        assert "swiprd trust" in refusal(stranger)
        stranger.rename(roots / "birds")
        load_model(load_spec(roots / "birds"))
        (roots / "birds").chmod(0o777)
        found = refusal(roots / "birds")
        assert found.endswith(f"(to trust it: chmod go-w {roots / 'birds'})")

    @pytest.mark.usefixtures("home")
    def test_by_a_link_that_root_has_put_there(self, stranger: Path, roots: Path) -> None:
        (roots / "birds").symlink_to(stranger)
        load_model(load_spec(roots / "birds"))
        assert "swiprd trust" in refusal(stranger)
        assert "swiprd trust" in refusal(roots / ".." / stranger.name), "that is not below it"

    def test_who_has_no_home_is_told_of_them(
        self, stranger: Path, roots: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trusted_programs, "place", lambda: None)
        found = refusal(stranger)
        assert "swiprd trust" not in found
        assert str(roots) in found


CODE = Code(kind="torchscript", size=5, sha256="0" * 64)
OTHER = Code(kind="export", size=7, sha256="1" * 64)


class TestTheRecord:
    def test_what_is_written_is_read(self, home: Path) -> None:
        assert trusted_programs.read() == frozenset()
        assert trusted_programs.record(CODE, Path("/a\nb")) == home / ".local/share/swipr/trusted"
        trusted_programs.record(OTHER, Path("/c"))
        trusted_programs.record(CODE, Path("/d"))
        assert trusted_programs.read() == {CODE, OTHER}
        lines = (home / ".local/share/swipr/trusted").read_text().splitlines()
        assert len([one for one in lines if not one.startswith("#")]) == 2

    @pytest.mark.usefixtures("home")
    def test_a_line_that_is_taken_out_trusts_no_more(self) -> None:
        file = trusted_programs.record(CODE, Path("/a"))
        trusted_programs.record(OTHER, Path("/b"))
        kept = [one for one in file.read_text().splitlines() if CODE.sha256 not in one]
        file.write_text("\n".join([*kept, "", "nonsense", f"{'0' * 64} torchscript many /a"]))
        assert trusted_programs.read() == {OTHER}
        trusted_programs.record(CODE, Path("/a"))  # behind a line without its end
        assert trusted_programs.read() == {CODE, OTHER}

    def test_a_folder_for_data_of_its_own(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        assert trusted_programs.place() == tmp_path / "data" / "swipr" / "trusted"
        for useless in ("", "relative"):
            monkeypatch.setenv("XDG_DATA_HOME", useless)
            assert trusted_programs.place() == home / ".local/share/swipr/trusted"

    def test_no_home_in_the_environment(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import pwd

        monkeypatch.delenv("HOME")
        fields = pwd.getpwuid(os.geteuid())
        monkeypatch.setattr(
            pwd, "getpwuid", lambda _: pwd.struct_passwd((*fields[:5], str(home), "/bin/sh"))
        )
        assert trusted_programs.place() == home / ".local/share/swipr/trusted"

    @pytest.mark.usefixtures("home")
    @pytest.mark.parametrize("what", ["file", "folder"])
    @pytest.mark.parametrize("how", ["link", "others", "another's"])
    def test_one_that_others_could_write_is_not_used(
        self, tmp_path: Path, what: str, how: str
    ) -> None:
        file = trusted_programs.record(CODE, Path("/a"))
        path = file if what == "file" else file.parent
        match how:
            case "link":
                path.rename(tmp_path / "elsewhere")
                path.symlink_to(tmp_path / "elsewhere")
            case "others":
                path.chmod(path.stat().st_mode | 0o020)
            case _:
                if os.geteuid() != 0:
                    pytest.skip("only root can give files away")
                os.chown(path, SOMEBODY, -1)
                if what == "folder":
                    assert trusted_programs.place() != file, "sudo hands root the user's home"
                    return
        with pytest.raises(NoRecord, match=str(path)):
            trusted_programs.read()
        with pytest.raises(NoRecord, match=str(path)):
            trusted_programs.record(OTHER, Path("/b"))

    def test_what_is_no_file(self, home: Path) -> None:
        (home / ".local/share/swipr").mkdir(parents=True, mode=0o700)
        os.mkfifo(home / ".local/share/swipr/trusted", 0o600)
        with pytest.raises(NoRecord):
            trusted_programs.read()

    def test_the_refusal_says_that_the_record_is_not_used(self, stranger: Path, home: Path) -> None:
        run("trust", stranger)
        (home / ".local/share/swipr/trusted").chmod(0o666)
        assert "0666" in refusal(stranger)

    @needs_root
    @pytest.mark.usefixtures("home")
    def test_each_user_has_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trusted_programs.record(CODE, Path("/a"))
        with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
            os.chown(name, SOMEBODY, SOMEBODY)

            def theirs() -> str:
                os.environ["HOME"] = name
                before = trusted_programs.read()
                trusted_programs.record(OTHER, Path("/b"))
                return repr((before, trusted_programs.read() == {OTHER}))

            assert as_uid(SOMEBODY, theirs) == repr((frozenset(), True))
            assert trusted_programs.read() == {CODE}
            monkeypatch.setenv("HOME", name)  # sudo -E, or an su without a dash
            place = trusted_programs.place()
            assert place is not None
            assert not place.is_relative_to(name), "root trusts nothing that a user can write"


@pytest.mark.usefixtures("home")
class TestTheCommand:
    def test_it_shows_what_it_trusts(self, stranger: Path) -> None:
        import hashlib

        file = stranger / "program.pt"
        status, out, _ = run("trust", stranger)
        assert status == 0
        told = dict(line.split(maxsplit=1) for line in out.splitlines() if line)
        assert told["model"] == "gift"
        assert told["program"] == str(file)
        assert told["kind"] == "torchscript"
        assert told["size"] == f"{file.stat().st_size} bytes"
        assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"uid {os.geteuid()}" in told["owner"]

    def test_a_model_without_code_needs_none(self, tiny_model: Path, home: Path) -> None:
        status, out, err = run("trust", tiny_model)
        assert (status, err) == (0, "")
        assert "carries no code" in out
        assert not (home / ".local").exists()

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        status, out, err = run("trust", tmp_path)
        assert (status, out) == (78, "")
        assert err.startswith(f"swiprd trust: {tmp_path}/model.toml: expected")

    def test_where_nothing_can_be_recorded(self, stranger: Path, home: Path) -> None:
        (home / ".local").write_text("in the way")
        status, _, err = run("trust", stranger)
        assert status == 73
        assert ".local" in err
