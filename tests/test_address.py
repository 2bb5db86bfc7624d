"""Which socket is chosen, and what is said where it cannot be used."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from swiprctl import address
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
    monkeypatch.delenv("SWIPR_SOCKET", raising=False)
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
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = f"/tmp/swipr-{os.geteuid()}/default.sock"
    for value in ("", "relative", str(system / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert choose().path == fallback
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert choose().path == fallback


@needs_root
@pytest.mark.usefixtures("system")
def test_root_does_not_use_a_users_runtime_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    assert choose().path == "/tmp/swipr-0/default.sock"


def test_a_model_has_a_socket_of_the_system(system: Path) -> None:
    (system / "chexnet.sock").touch()
    assert choose(None, "chexnet").path == f"{system}/chexnet.sock"
    assert choose(None, "default").kind == "private"
    with pytest.raises(NoDaemon, match=r"systemctl enable --now swiprd@birds\.socket"):
        choose(None, "birds")
    for name in ("", ".hidden", "a\0b"):
        with pytest.raises(UsageError):
            choose(None, name)


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
    assert choose(None, "./pets").path != found.path, "a daemon of the old one may still be there"


@pytest.mark.usefixtures("system")
def test_whoever_changes_a_file_of_the_model_gets_another_daemon(tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    (pets / "sub").mkdir(parents=True)
    (pets / "model.toml").write_text(
        "# isn't this one fine?\nname = 'pets'\nlabels = 'labels.txt'\n"
        'weights = "sub/weights.pth"  # "best.pth"\n[canary]\nimage = "cat.jpg"\n'
    )
    for name in ("labels.txt", "sub/weights.pth", "cat.jpg"):
        (pets / name).write_text("1")
    seen = {choose(None, f"{pets}/").path}
    for name in ("labels.txt", "sub/weights.pth", "cat.jpg", "model.toml"):
        info = (pets / name).stat()
        os.utime(pets / name, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
        seen.add(choose(None, f"{pets}/").path)
    new = tmp_path / "new"
    new.write_text("2")
    shutil.copystat(pets / "labels.txt", new)
    new.rename(pets / "labels.txt")  # of the same name, size and time
    seen.add(choose(None, f"{pets}/").path)
    (pets / "labels.txt").unlink()
    seen.add(choose(None, f"{pets}/").path)
    assert len(seen) == 7


@pytest.mark.usefixtures("system")
def test_what_is_put_beside_a_model_starts_no_daemon(tmp_path: Path) -> None:
    """Answers, for one: `swiprctl --model ./pets predict … >pets/rows.csv`."""
    (tmp_path / "model.toml").write_text('name = "pets"\nweights = "weights.pth"\n')
    (tmp_path / "weights.pth").touch()
    before = choose(None, f"{tmp_path}/").path
    (tmp_path / "rows.csv").write_text("0.5,0.5\n")
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "cat.jpg").touch()
    assert choose(None, f"{tmp_path}/").path == before


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
