"""swiprctl and swiprd together, as a user runs them: real commands, real files, real pipes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import StartDaemon
from daemonprocess import PATIENCE, DaemonProcess, is_alive, wait_until
from modelfolders import CLASSES, make_folder, make_module, photo
from PIL import Image

from swiprctl import Client
from swiprd.inference.torchvision_import import import_torchvision

pytestmark = pytest.mark.timeout(120)

SWIPRCTL = [sys.executable, "-P", "-m", "swiprctl"]
PHOTOS = Path(__file__).parent.parent / "photos"


def swiprctl(
    *arguments: str | Path,
    socket: Path | None = None,
    stdin: bytes | int = subprocess.DEVNULL,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command line; nothing of the caller's environment chooses the daemon."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SWIPR", "XDG_RUNTIME"))}
    if socket is not None:
        clean["SWIPR_SOCKET"] = str(socket)
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    return subprocess.run(
        [*SWIPRCTL, *map(str, arguments)],
        capture_output=True,
        env=clean | (environment or {}),
        timeout=PATIENCE * 2,
        **given,
    )


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Photographs under names that a careless CSV writer gets wrong."""
    names = ["plain.jpg", "a,b.jpg", 'say "hi".jpg', "two\nlines.jpg", os.fsdecode(b"\xff.jpg")]
    paths = [tmp_path / "in" / name for name in names]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        path.write_bytes(photo(seed))
    return paths


def recipe_row(architecture: str, path: Path) -> list[float]:
    """Probabilities by the plain torchvision recipe, in this process."""
    import_torchvision()
    from torchvision import transforms

    recipe = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with Image.open(path) as image, torch.inference_mode():
        batch = recipe(image.convert("RGB")).unsqueeze(0)
        row: list[float] = make_module(architecture)(batch).softmax(1)[0].tolist()
    return row


class TestRows:
    def test_one_image_one_row_and_nothing_else(
        self, daemon: DaemonProcess, images: list[Path]
    ) -> None:
        run = swiprctl("predict", images[0], socket=daemon.path)
        assert (run.returncode, run.stderr) == (0, b"")
        assert run.stdout.count(b"\n") == 1
        row = [float(cell) for cell in run.stdout.decode().split(",")]
        assert row == pytest.approx(recipe_row("shufflenet_v2_x0_5", images[0]), abs=1e-4)
        assert b"e" not in run.stdout

    def test_many_come_in_order_with_their_paths(
        self, daemon: DaemonProcess, images: list[Path]
    ) -> None:
        run = swiprctl("predict", "--header", *images, socket=daemon.path)
        assert (run.returncode, run.stderr) == (0, b"")
        text = io.StringIO(run.stdout.decode(errors="surrogateescape"), newline="")
        head, *rows = csv.reader(text)
        assert head == ["path", *(f"class{i}" for i in range(CLASSES))]
        assert [row[0] for row in rows] == [str(path) for path in images]
        for row, path in zip(rows, images, strict=True):
            expected = recipe_row("shufflenet_v2_x0_5", path)
            assert [float(cell) for cell in row[1:]] == pytest.approx(expected, abs=1e-4)

    def test_every_way_in_gives_the_same_row(
        self, daemon: DaemonProcess, images: list[Path]
    ) -> None:
        data = images[0].read_bytes()
        by_path = swiprctl("predict", images[0], socket=daemon.path)
        by_pipe = swiprctl("predict", "-", socket=daemon.path, stdin=data)
        with open(images[0], "rb") as file:
            by_file = swiprctl("predict", "-", socket=daemon.path, stdin=file.fileno())
        quoted = f"{sys.executable} -P -m swiprctl predict <(cat '{images[0]}')"
        by_substitution = subprocess.run(
            ["bash", "-c", quoted],
            capture_output=True,
            env={**os.environ, "SWIPR_SOCKET": str(daemon.path)},
        )
        assert by_path.returncode == 0
        for other in (by_pipe, by_file, by_substitution):
            assert (other.returncode, other.stdout) == (0, by_path.stdout), other.stderr

    def test_lists(self, daemon: DaemonProcess, images: list[Path], tmp_path: Path) -> None:
        direct = swiprctl("predict", *images, socket=daemon.path)
        zero = b"".join(os.fsencode(path) + b"\0" for path in images)
        by_stdin = swiprctl("predict", "--files0-from=-", socket=daemon.path, stdin=zero)
        (tmp_path / "list").write_bytes(zero)
        by_file = swiprctl("predict", f"--files0-from={tmp_path / 'list'}", socket=daemon.path)
        assert direct.returncode == 0
        assert by_stdin.stdout == by_file.stdout == direct.stdout

    def test_a_failing_input_leaves_the_others_alone(
        self, daemon: DaemonProcess, images: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "text.jpg").write_text("not an image")
        os.mkfifo(tmp_path / "fifo")
        inputs = [
            images[0],
            tmp_path / "text.jpg",
            tmp_path / "missing.jpg",
            tmp_path,
            Path("/dev/zero"),
            images[1],
        ]
        run = swiprctl("predict", *inputs, socket=daemon.path)
        assert run.returncode == 1
        assert run.stdout.count(b"\n") == 2
        lines = run.stderr.decode().splitlines()
        assert len(lines) == 4
        for line, path in zip(lines, inputs[1:5], strict=True):
            assert line.startswith(f"swiprctl: {path}: ")

    @pytest.mark.parametrize(
        ("name", "status"), [("text.jpg", 65), ("missing.jpg", 66), (".", 66), ("/dev/null", 66)]
    )
    def test_the_exit_status_of_one_input(
        self, daemon: DaemonProcess, tmp_path: Path, name: str, status: int
    ) -> None:
        (tmp_path / "text.jpg").write_text("not an image")
        assert swiprctl("predict", tmp_path / name, socket=daemon.path).returncode == status

    def test_a_deadline(self, daemon: DaemonProcess, slow_image: Path) -> None:
        run = swiprctl("predict", "--timeout=0.3", slow_image, socket=daemon.path)
        assert run.returncode == 124
        assert run.stdout == b""

    def test_two_thousand_inputs_in_constant_space(
        self, daemon: DaemonProcess, images: list[Path]
    ) -> None:
        names = b"".join(os.fsencode(images[i % 2]) + b"\0" for i in range(2000))
        limited = ["prlimit", "--nofile=64", *SWIPRCTL, "predict", "--files0-from=-", "-h"]
        run = subprocess.run(
            limited,
            input=names,
            capture_output=True,
            env={**os.environ, "SWIPR_SOCKET": str(daemon.path)},
        )
        assert run.returncode == 0, run.stderr
        rows = run.stdout.splitlines()
        assert len(rows) == 2000
        assert len(set(rows[::2])) == len(set(rows[1::2])) == 1
        assert rows[0] != rows[1]


def field_names(fields: object) -> set[str]:
    """The names in a map, and in the maps and lists in it; of counts by name, none."""
    if isinstance(fields, list):
        return {name for item in fields for name in field_names(item)}
    if not isinstance(fields, dict):
        return set()
    free = ("by_uid", "outcomes", "versions")
    inner = (field_names(value) for name, value in fields.items() if name not in free)
    return set(fields).union(*inner)


class TestQuestions:
    def test_status_model_and_ping_can_be_read(self, daemon: DaemonProcess) -> None:
        status = swiprctl("status", socket=daemon.path)
        assert status.returncode == 0
        assert b"ready" in status.stdout
        model = json.loads(swiprctl("model", "--json", socket=daemon.path).stdout)
        assert model["labels"] == [f"class{i}" for i in range(CLASSES)]
        assert model["activation"] == "softmax"
        ping = swiprctl("ping", socket=daemon.path)
        assert (ping.returncode, ping.stderr) == (0, b"")

    def test_every_field_of_them_is_documented(self, daemon: DaemonProcess) -> None:
        for ask in (Client.status, Client.model, Client.ping):
            with Client(str(daemon.path)) as client:
                fields = ask(client)
            for name in field_names(fields):
                assert re.search(rf"\b{name}\b", ask.__doc__ or ""), f"{ask.__name__}: {name}"

    def test_the_client_has_no_extension_module_of_anyone_else(
        self, daemon: DaemonProcess, images: list[Path]
    ) -> None:
        code = """
import sys, sysconfig
from swiprctl.cli import main
status = main(["predict", sys.argv[1]])
sys.stdout.flush()
stdlib = sysconfig.get_path("stdlib")
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None) or ""
    if path.endswith(".so") and not path.startswith(stdlib + "/lib-dynload"):
        print(name, path)
sys.exit(status)
"""
        run = subprocess.run(
            [sys.executable, "-c", code, str(images[0])],
            capture_output=True,
            env={**os.environ, "SWIPR_SOCKET": str(daemon.path), "MSGPACK_PUREPYTHON": "1"},
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout == swiprctl("predict", images[0], socket=daemon.path).stdout


class TestRestart:
    def test_a_daemon_that_is_killed_and_comes_back_costs_no_row(
        self, tmp_path: Path, tiny_model: Path, images: list[Path]
    ) -> None:
        """systemd keeps the listening socket over a restart; so does this test."""
        path = tmp_path / "s.sock"

        with sockets.socket(sockets.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(16)

            def serve() -> subprocess.Popen[bytes]:
                handover = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execve(sys.argv[2], sys.argv[2:], environment)
"""
                command = [
                    *(sys.executable, "-c", handover, str(listener.fileno())),
                    *(sys.executable, "-P", "-m", "swiprd", "serve", "--config", os.devnull),
                    *("--model", str(tiny_model), "--cache", str(tmp_path)),
                    *("--workers=1", "--threads=1", "--batch=1"),
                ]
                return subprocess.Popen(
                    command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
                )

            daemon = serve()
            names = b"".join(os.fsencode(images[i % 2]) + b"\0" for i in range(300))
            client = subprocess.Popen(
                [*SWIPRCTL, "predict", "--files0-from=-", "-h"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "SWIPR_SOCKET": str(path)},
            )
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(names)
            client.stdin.close()
            rows = [client.stdout.readline() for _ in range(20)]
            daemon.kill()
            daemon.wait()
            daemon = serve()
            rows += client.stdout.readlines()
            client.stdout.close()
            assert client.stderr is not None
            words = client.stderr.read()
            client.stderr.close()
            assert client.wait() == 0, words
            daemon.terminate()
            assert daemon.wait() == 0
        assert len(rows) == 300
        assert len(set(rows[::2])) == len(set(rows[1::2])) == 1


class TestAutostart:
    @pytest.fixture
    def home(self, tmp_path: Path) -> Iterator[dict[str, str]]:
        """A user's environment of its own; what was started in it is gone afterwards."""
        runtime = tmp_path / "run"
        runtime.mkdir(mode=0o700)
        environment = {
            "XDG_RUNTIME_DIR": str(runtime),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "HOME": str(tmp_path),
        }
        yield environment
        run = swiprctl("status", "--json", "--no-autostart", environment=environment)
        if run.returncode == 0:
            pid = json.loads(run.stdout)["pid"]
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not is_alive(pid), "the private daemon is gone")

    @pytest.mark.skipif(Path("/run/swipr/default.sock").exists(), reason="a system daemon is there")
    def test_a_first_request_starts_a_daemon_of_the_users_own(self, home: dict[str, str]) -> None:
        photos = [PHOTOS / "coffee.jpg", PHOTOS / "coffee-blurred.jpg"]
        run = swiprctl("predict", "--header", *photos, environment=home)
        assert run.returncode == 0, run.stderr
        head, sharp, blurred = csv.reader(io.StringIO(run.stdout.decode()))
        assert head == ["path", "sharp", "blurred"]
        assert float(sharp[1]) > 0.5 > float(sharp[2])
        assert float(blurred[1]) < 0.5 < float(blurred[2])
        socket = Path(home["XDG_RUNTIME_DIR"], "swipr", "default.sock")
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert socket.stat().st_mode & 0o777 == 0o600

    @pytest.mark.skipif(Path("/run/swipr/default.sock").exists(), reason="a system daemon is there")
    def test_ten_at_once_start_one(self, home: dict[str, str]) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SWIPR")}
        started = [
            subprocess.Popen(
                [*SWIPRCTL, "predict", PHOTOS / "rocket.jpg"],
                stdout=subprocess.PIPE,
                env=clean | home,
            )
            for _ in range(10)
        ]
        rows = {process.communicate(timeout=PATIENCE * 2)[0] for process in started}
        assert [process.returncode for process in started] == [0] * 10
        assert len(rows) == 1
        log = Path(home["XDG_RUNTIME_DIR"], "swipr", "default.log").read_text()
        assert log.count("ready: ") == 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "architecture", ["resnet18", "resnext50_32x4d", "mobilenet_v3_small", "densenet121", "vgg16"]
)
def test_rows_equal_the_plain_recipe(
    architecture: str, start_daemon: StartDaemon, tmp_path: Path, images: list[Path]
) -> None:
    model = make_folder(tmp_path / "model", architecture)
    daemon = start_daemon("--workers=1", "--threads=2", "--batch=2", model=model).wait_ready()
    run = swiprctl("predict", "-h", *images[:3], socket=daemon.path)
    assert run.returncode == 0, run.stderr
    rows = [[float(cell) for cell in line.split(",")] for line in run.stdout.decode().splitlines()]
    for row, path in zip(rows, images[:3], strict=True):
        assert row == pytest.approx(recipe_row(architecture, path), abs=1e-4)
