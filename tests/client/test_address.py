"""Which socket is chosen, and what is said where it cannot be used."""

from __future__ import annotations

import grp
import json
import os
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import standin

from swiprctl import Client, address
from swiprctl.address import MAX_PATH, Address, choose
from swiprctl.errors import CannotOpen, Forbidden, NoDaemon, UsageError

pytestmark = pytest.mark.timeout(30)

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of /run/swipr, and no variables set."""
    folder = tmp_path / "system"
    folder.mkdir()
    monkeypatch.setattr(address, "SYSTEM_FOLDER", str(folder))
    monkeypatch.setattr(address, "RUNTIME_FOLDER", str(tmp_path / "no-{uid}"))
    monkeypatch.setattr(address, "FALLBACK_FOLDER", str(tmp_path / "tmp" / "swipr-{uid}"))
    (tmp_path / "tmp").mkdir(mode=0o777)
    (tmp_path / "tmp").chmod(0o1777)
    for variable in ("SWIPR_SOCKET", "SWIPR_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return folder


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        yield listener


def test_the_order(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose()
    assert (found.kind, found.path) == ("private", f"{tmp_path}/swipr/default.sock")
    (system / "default.sock").touch()
    found = choose()
    assert (found.kind, found.path) == ("system", f"{system}/default.sock")
    monkeypatch.setenv("SWIPR_SOCKET", "/somewhere/else")
    assert (choose().kind, choose().path) == ("explicit", "/somewhere/else")
    assert choose("/asked/for").path == "/asked/for"
    monkeypatch.setenv("SWIPR_SOCKET", "")
    assert choose().kind == "system"


def test_a_runtime_folder_that_is_not_ours_is_not_used(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = f"{tmp_path}/tmp/swipr-{os.geteuid()}/default.sock"
    for value in ("", "relative", str(system / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert choose().path == fallback
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert choose().path == fallback
    (tmp_path / f"no-{os.geteuid()}").mkdir()
    assert choose().path == f"{tmp_path}/no-{os.geteuid()}/swipr/default.sock", "as cron has it"


@needs_root
@pytest.mark.usefixtures("system")
def test_root_does_not_use_a_users_runtime_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path, NOBODY, NOBODY)
    assert choose().path == f"{tmp_path}/tmp/swipr-0/default.sock"


@needs_root
@pytest.mark.usefixtures("system")
class TestAFallbackThatSomebodyElseHasTaken:
    @pytest.fixture
    def taken(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        with tempfile.TemporaryDirectory() as name:  # pytest's are too long for a socket's path
            Path(name).chmod(0o1777)
            monkeypatch.setattr(address, "FALLBACK_FOLDER", f"{name}/swipr-{{uid}}")
            taken = Path(name) / "swipr-0"
            taken.mkdir(mode=0o777)
            os.chown(taken, NOBODY, NOBODY)
            yield taken

    def test_another_is_made_and_found_again(self, taken: Path) -> None:
        path = Path(choose().path)
        assert path.parent != taken
        assert path.parent.parent == taken.parent
        info = path.parent.stat()
        assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o700)
        assert choose().path == str(path), "daemon and clients meet there"
        address.check_folder(str(path.parent), make=True)
        taken.rmdir()
        assert choose().path == f"{taken}/default.sock"

    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_whatever_it_is(self, taken: Path, tmp_path: Path, kind: str) -> None:
        taken.rmdir()
        if kind == "file":
            taken.touch()
        else:
            (tmp_path / "mine").mkdir(mode=0o700)
            taken.symlink_to(tmp_path / "mine")
        os.chown(taken, NOBODY, NOBODY, follow_symlinks=False)
        folder = Path(choose().path).parent
        assert folder.name.startswith("swipr-0-")

    def test_what_others_put_beside_it_is_not_used(self, taken: Path) -> None:
        early = f"{taken}-{0:016x}-"
        Path(f"{early}their-own").mkdir(mode=0o700)
        os.chown(f"{early}their-own", NOBODY, NOBODY)
        Path(f"{early}open").mkdir()
        Path(f"{early}open").chmod(0o770)
        Path(f"{early}link").symlink_to(taken)
        Path(f"{early}file").touch()
        folder = Path(choose().path).parent
        assert not folder.name.startswith(Path(early).name)
        assert choose().path == f"{folder}/default.sock"

    def test_who_made_it_blocks_nobody(
        self, taken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A daemon is started there, and the next client asks the same one."""
        record = tmp_path / "record"
        monkeypatch.setenv("STANDIN_RECORD", str(record))
        python = standin.make(tmp_path / "python")
        monkeypatch.setenv("PYTHONPATH", f"{python}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.setattr(sys, "path", [*sys.path, str(python)])
        try:
            models = set()
            for _ in range(2):
                with Client() as client:
                    assert not client.socket_path.startswith(f"{taken}/")
                    models.add(client.predict(b"12345").model)
            assert len(models) == 1
        finally:
            for line in record.read_text().splitlines():
                pidfd = os.pidfd_open(json.loads(line)["pid"])
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], 10)
                os.close(pidfd)

    def test_many_at_once_agree(self, taken: Path) -> None:
        """Of those that were made at the same time, all take the oldest from then on."""
        for number in (3, 1, 2):
            Path(f"{taken}-{number:016x}-x").mkdir(mode=0o700)
        assert choose().path == f"{taken}-{1:016x}-x/default.sock"


def test_a_model_has_a_socket_of_the_system(system: Path) -> None:
    (system / "chexnet.sock").touch()
    assert choose(None, "chexnet").path == f"{system}/chexnet.sock"
    assert choose(None, "default").kind == "private"
    with pytest.raises(NoDaemon, match=r"systemctl enable --now swiprd@birds\.socket"):
        choose(None, "birds")
    for name in ("", ".hidden", "a\0b"):
        with pytest.raises(UsageError):
            choose(None, name)


def test_a_variable_names_a_model(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "chexnet.sock").touch()
    (system / "birds.sock").touch()
    monkeypatch.setenv("SWIPR_MODEL", "chexnet")
    assert choose().path == f"{system}/chexnet.sock"
    assert choose(None, "birds").path == f"{system}/birds.sock", "the option stands above it"
    assert choose("/other").path == "/other"
    monkeypatch.setenv("SWIPR_MODEL", "./nowhere")
    with pytest.raises(CannotOpen, match=r"^SWIPR_MODEL: .*nowhere/model\.toml: No such file"):
        choose()
    monkeypatch.setenv("SWIPR_SOCKET", "/somewhere/else")
    with pytest.raises(UsageError, match="SWIPR_SOCKET and SWIPR_MODEL are both set"):
        choose()
    assert choose(None, "birds").path == f"{system}/birds.sock", "or above both"
    assert choose("/other").path == "/other"
    monkeypatch.setenv("SWIPR_MODEL", "")
    assert choose().path == "/somewhere/else"


def test_a_models_folder_has_a_socket_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pets = tmp_path / "pets"
    pets.mkdir()
    (pets / "model.toml").write_text('name = "pets"\n')
    (tmp_path / "link").symlink_to(pets)
    found = choose(None, f"{pets}/")
    assert (found.kind, found.folder) == ("private", str(pets))
    assert Path(found.path).parent == Path(choose(None, "default").path).parent
    assert len(found.path) <= MAX_PATH
    monkeypatch.chdir(tmp_path)
    assert choose(None, "./pets").path == choose(None, "./link").path == found.path
    (tmp_path / "cats").mkdir()
    shutil.copy2(pets / "model.toml", tmp_path / "cats")
    assert choose(None, "./cats").path != found.path
    (pets / "model.toml").write_text('name = "pets"\nsha256 = "…"\n')
    assert choose(None, "./pets").path == found.path, "an edit is for the daemon to notice"


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "closed", "huge", "odd"])
def test_a_model_that_cannot_be_read_is_the_daemons_to_tell_of(tmp_path: Path, kind: str) -> None:
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
    choose(None, f"{tmp_path}/")


@pytest.mark.usefixtures("system")
def test_a_folder_that_is_named_without_its_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "model.toml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoDaemon, match=r"say --model \./pets$"):
        choose(None, "pets")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match=r"model\.toml: No such file .*'swiprd pack' makes"):
        choose(None, f"{tmp_path}/")
    with pytest.raises(UsageError, match=r"a folder's has a slash: \./\.pets"):
        choose(None, ".pets")
    with pytest.raises(UsageError):
        choose("/a/socket", "chexnet")
    with pytest.raises(UsageError):
        choose("")


def test_the_system_socket_comes_with_its_remedy(system: Path) -> None:
    found = Address(f"{system}/default.sock", "system", "swiprd")
    with pytest.raises(address.NotListening):
        found.connect()
    told = str(found.no_daemon("gone"))
    assert "systemctl status swiprd.socket" in told
    assert "systemctl reset-failed swiprd.service; systemctl start swiprd.socket" in told
    told = str(Address("/x", "system", "swiprd@birds").no_daemon("gone"))
    assert "systemctl reset-failed swiprd@birds.service" in told


def private(folder: Path) -> Address:
    return Address(f"{folder}/default.sock", "private")


def test_a_private_folder_must_be_a_closed_one(tmp_path: Path) -> None:
    folder = tmp_path / "swipr"
    with pytest.raises(address.NotListening):
        private(folder).connect()
    folder.mkdir(mode=0o700)
    folder.chmod(0o750)
    with pytest.raises(NoDaemon, match="mode is 0750"):
        private(folder).connect()
    folder.chmod(0o700)
    with pytest.raises(address.NotListening):
        private(folder).connect()
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(NoDaemon, match="it is not a directory"):
        private(link).connect()
    with pytest.raises(NoDaemon, match="cannot make"):
        address.check_folder(str(tmp_path / "no" / "folder"), make=True)


@needs_root
def test_a_private_folder_must_be_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "swipr"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(NoDaemon, match=f"belongs to uid {NOBODY}"):
        private(folder).connect()


@needs_root
def test_nobody_else_may_listen_in_a_private_folder(
    tmp_path: Path, listener: socket.socket
) -> None:
    folder = tmp_path / "swipr"
    folder.mkdir(mode=0o700)
    listener.bind(f"{folder}/default.sock")
    os.seteuid(NOBODY)  # the kernel notes who calls listen(2)
    try:
        listener.listen()
    finally:
        os.seteuid(0)
    with pytest.raises(NoDaemon, match=f"uid {NOBODY} listens"):
        private(folder).connect()
    connection = Address(f"{folder}/default.sock", "explicit").connect()
    assert connection is not None
    connection.close()


def test_a_full_queue_is_no_error(tmp_path: Path, listener: socket.socket) -> None:
    path = str(tmp_path / "s")
    listener.bind(path)
    listener.listen(0)
    made = []
    while (connection := Address(path, "explicit").connect()) is not None:
        made.append(connection)
        assert len(made) < 10
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("mode", "told"),
    [(0o660, "ask to be added to group daemon"), (0o600, r"only its owner \(uid 0\) may")],
)
@needs_root
def test_a_closed_socket_says_what_to_do(listener: socket.socket, mode: int, told: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "s"
        listener.bind(str(path))
        listener.listen()
        path.chmod(mode)
        os.chown(path, 0, grp.getgrnam("daemon").gr_gid)
        closed = folder / "closed"
        closed.mkdir(mode=0o700)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(Forbidden, match=told) as error:
                Address(str(path), "explicit").connect()
            assert str(path) in str(error.value)
            with pytest.raises(Forbidden, match="its folder is closed to you"):
                Address(f"{closed}/s", "explicit").connect()
        finally:
            os.seteuid(0)
