"""The command as its users meet it: a process, its output, its words and its exit status."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgpack
import pytest
from peer import Connection, Peer

from swiprctl import errors
from swiprctl.arguments import parse
from swiprctl.cli import main
from swiprctl.errors import (
    BadImage,
    LoadingFailed,
    Overloaded,
    TooLarge,
    UsageError,
    WorkerCrashed,
)
from swiprctl.report import duration, headline, lines
from swiprctl.version import __version__

pytestmark = pytest.mark.timeout(30)

LABELS = ["sharp", "blurred, or so"]


def daemon(connection: Connection) -> None:
    """Answer an image with its size in hundredths, or with the error its content names."""
    refused = {b"bad": BadImage("not an image"), b"large": TooLarge("too many pixels")}
    refused[b"crash"] = WorkerCrashed("it killed two workers")
    while True:
        asked = connection.asked()
        if asked.op == "model":
            connection.reply(asked.id, name="peer", model="peer@1", labels=LABELS)
        elif asked.op == "status":
            connection.reply(asked.id, state="ready", uptime=7500.0, queue={"waiting": 0})
        elif asked.op == "ping":
            connection.reply(asked.id, model="peer@1", seconds=0.0123)
        elif asked.op == "reload":
            connection.refuse(asked.id, LoadingFailed("no weights.pth"))
        elif asked.image in refused:
            connection.refuse(asked.id, refused[asked.image])
        else:
            assert asked.image is not None
            share = len(asked.image) / 100
            connection.answer(asked, share, 1 - share)


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    monkeypatch.chdir(tmp_path)
    for number in (10, 20, 30, 60):
        Path(f"{number}.jpg").write_bytes(bytes(number))
    for name in ("bad", "large", "crash"):
        Path(f"{name}.jpg").write_bytes(name.encode())
    monkeypatch.setenv("SWIPR_SOCKET", str(tmp_path / "s"))
    with Peer(tmp_path / "s", daemon) as peer:
        yield peer


def swiprctl(
    *words: str | bytes, stdin: bytes | int = b"", **environment: str
) -> tuple[str, str, int]:
    """Run it; gives what it wrote, with what is not UTF-8 escaped, and its exit status."""
    given: dict[str, object] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run(
        [sys.executable, "-m", "swiprctl", *words],
        capture_output=True,
        timeout=20,
        check=False,
        env={**os.environ, **environment},
        **given,  # type: ignore[call-overload]
    )
    out, err = (data.decode(errors="surrogateescape") for data in (done.stdout, done.stderr))
    return out, err, done.returncode


def choosy(connection: Connection) -> None:
    """A daemon whose model finds several labels at once, from different probabilities on."""
    rows = {1: (0.5, 0.25, 0.75), 2: (0.0, 0.0, 0.0)}
    while True:
        asked = connection.asked()
        if asked.op == "model":
            labels = ["Mass", "Nodule", "Hernia"]
            thresholds = [0.5, 0.5, 0.125]
            connection.reply(asked.id, model="peer@1", labels=labels, thresholds=thresholds)
        else:
            assert asked.image is not None
            connection.answer(asked, *rows[len(asked.image)])


def test_labels_that_reach_their_thresholds(tmp_path: Path) -> None:
    for size in (1, 2):
        (tmp_path / str(size)).write_bytes(bytes(size))
    with Peer(tmp_path / "s", choosy):
        words = ("--socket", str(tmp_path / "s"), str(tmp_path / "1"), str(tmp_path / "2"), "-h")
        assert swiprctl("predict", "--labels", *words)[0] == "Hernia,0.75,Mass,0.5\n\n"
        assert swiprctl("predict", "--top=3", *words)[0] == (
            "Hernia,0.75,Mass,0.5,Nodule,0.25\nMass,0,Nodule,0,Hernia,0\n"
        )
        assert swiprctl("predict", *words)[0] == "0.5,0.25,0.75\n0,0,0\n"


@pytest.mark.parametrize("thresholds", [[0.5], "0.5", [0.5, None], [0.5, True]])
def test_thresholds_that_make_no_sense(tmp_path: Path, thresholds: object) -> None:
    def senseless(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            if asked.op == "model":
                connection.reply(asked.id, model="peer@1", labels=LABELS, thresholds=thresholds)
            else:
                connection.answer(asked, 0.5, 0.5)

    (tmp_path / "a").write_bytes(b"x")
    with Peer(tmp_path / "s", senseless):
        _, err, status = swiprctl(
            *("predict", "--labels", "--socket", str(tmp_path / "s"), str(tmp_path / "a"))
        )
    assert status == 76
    assert "threshold" in err


# -- predict


@pytest.mark.usefixtures("peer")
class TestPredict:
    def test_one_image_is_one_row(self) -> None:
        assert swiprctl("predict", "10.jpg") == ("0.1,0.9\n", "", 0)

    def test_more_have_their_path_in_front(self) -> None:
        out = "10.jpg,0.1,0.9\n30.jpg,0.3,0.7\n20.jpg,0.2,0.8\n"
        assert swiprctl("predict", "10.jpg", "30.jpg", "20.jpg") == (out, "", 0)

    def test_the_path_can_be_forced(self) -> None:
        assert swiprctl("predict", "-H", "10.jpg")[0] == "10.jpg,0.1,0.9\n"
        assert swiprctl("predict", "-h", "10.jpg", "20.jpg")[0] == "0.1,0.9\n0.2,0.8\n"
        assert swiprctl("predict", "10.jpg", "20.jpg", "-Hh")[0] == "0.1,0.9\n0.2,0.8\n"

    def test_the_header(self) -> None:
        out, err, status = swiprctl("predict", "--header", "10.jpg")
        assert (out, err, status) == ('sharp,"blurred, or so"\n0.1,0.9\n', "", 0)
        out, _, _ = swiprctl("predict", "--header", "bad.jpg", "10.jpg")
        assert out == 'path,sharp,"blurred, or so"\n10.jpg,0.1,0.9\n'

    def test_labels(self) -> None:
        out, err, status = swiprctl("predict", "--labels", "10.jpg", "60.jpg")
        assert (out, err, status) == (
            '10.jpg,"blurred, or so",0.9,sharp,0.1\n60.jpg,sharp,0.6,"blurred, or so",0.4\n',
            "",
            0,
        )

    def test_the_best_labels(self) -> None:
        assert swiprctl("predict", "--top", "1", "60.jpg")[0] == "sharp,0.6\n"
        assert swiprctl("predict", "--labels", "--top=1", "10.jpg")[0] == '"blurred, or so",0.9\n'
        for many in ("7", "0000000000007", "9" * 5000):
            out = swiprctl("predict", f"--top={many}", "60.jpg")[0]
            assert out == 'sharp,0.6,"blurred, or so",0.4\n'
        told = json.loads(swiprctl("predict", "--json", "--top=1", "60.jpg")[0])
        assert told["probabilities"] == {"sharp": 0.6}

    def test_the_model_is_a_column(self) -> None:
        out = swiprctl("predict", "--with-model", "--header", "-H", "10.jpg")[0]
        assert out == 'path,model,sharp,"blurred, or so"\n10.jpg,peer@1,0.1,0.9\n'
        assert swiprctl("predict", "--with-model", "10.jpg")[0] == "peer@1,0.1,0.9\n"
        out = swiprctl("predict", "--with-model", "--top=1", "10.jpg", "60.jpg")[0]
        assert out == '10.jpg,peer@1,"blurred, or so",0.9\n60.jpg,peer@1,sharp,0.6\n'

    def test_json(self) -> None:
        out, err, status = swiprctl("predict", "--json", "10.jpg", "bad.jpg", "20.jpg")
        first, second = map(json.loads, out.splitlines())
        assert first == {
            "path": "10.jpg",
            "probabilities": {"sharp": 0.1, "blurred, or so": 0.9},
            "model": "peer@1",
            "seconds": {"queued": 0, "decode": 0.001, "infer": 0.002},
        }
        assert second["path"] == "20.jpg"
        assert (err, status) == ("swiprctl: bad.jpg: not an image\n", 1)

    def test_standard_input(self) -> None:
        assert swiprctl("predict", "-", stdin=bytes(40)) == ("0.4,0.6\n", "", 0)
        with open("20.jpg", "rb") as file:
            assert swiprctl("predict", "-", "10.jpg", stdin=file.fileno())[0] == (
                "-,0.2,0.8\n10.jpg,0.1,0.9\n"
            )
            file.seek(15)
            assert swiprctl("predict", "-", stdin=file.fileno())[0] == "0.05,0.95\n"

    def test_process_substitution(self) -> None:
        done = subprocess.run(
            [
                "bash",
                "-c",
                '"$0" -m swiprctl predict -h <(cat 20.jpg) <(head -c 5 10.jpg)',
                sys.executable,
            ],
            capture_output=True,
            timeout=20,
            check=True,
        )
        assert done.stdout == b"0.2,0.8\n0.05,0.95\n"

    def test_lists_of_names(self) -> None:
        out = "10.jpg,0.1,0.9\n20.jpg,0.2,0.8\n"
        for data in (b"10.jpg\n20.jpg\n", b"10.jpg\n\n20.jpg", b"10.jpg\n20.jpg\n\n"):
            assert swiprctl("predict", "--files-from=-", stdin=data) == (out, "", 0)
            Path("list").write_bytes(data)
            assert swiprctl("predict", "--files-from", "list") == (out, "", 0)
        for data in (b"10.jpg\x0020.jpg\0", b"10.jpg\x0020.jpg"):
            assert swiprctl("predict", "--files0-from=-", stdin=data) == (out, "", 0)
        assert swiprctl("predict", "--files-from=-") == ("", "", 0)
        out, err, status = swiprctl("predict", "--files0-from=-", stdin=b"10.jpg\0\x0020.jpg\0")
        assert out == "10.jpg,0.1,0.9\n20.jpg,0.2,0.8\n"
        assert (err, status) == ("swiprctl: '': No such file or directory\n", 1)
        assert swiprctl("predict", "--files-from=missing") == (
            "",
            "swiprctl: missing: No such file or directory\n",
            66,
        )

    def test_a_dash_in_a_list(self) -> None:
        Path("list").write_bytes(b"10.jpg\n-\n")
        out, _, status = swiprctl("predict", "--files-from=list", stdin=bytes(50))
        assert (out, status) == ("10.jpg,0.1,0.9\n-,0.5,0.5\n", 0)
        # Standard input cannot be the list and an image of it.
        out, err, status = swiprctl("predict", "--files-from=-", stdin=b"10.jpg\n-\n")
        assert (out, status) == ("10.jpg,0.1,0.9\n", 1)
        assert err == "swiprctl: -: No such file or directory\n"

    def test_a_path_of_any_bytes(self, tmp_path: Path) -> None:
        name = b'-\xff,"\n.jpg'
        (Path(os.fsencode(tmp_path).decode()) / os.fsdecode(name)).write_bytes(bytes(50))
        out, err, status = swiprctl("predict", "-H", "--", name)
        assert out.encode(errors="surrogateescape") == b'"-\xff,""\n.jpg",0.5,0.5\n'
        assert (err, status) == ("", 0)
        _, err, _ = swiprctl("predict", "--", name + b"missing\r")
        assert err.encode(errors="surrogateescape") == (
            b'swiprctl: -\xff,"\\x0a.jpgmissing\\x0d: No such file or directory\n'
        )

    @pytest.mark.parametrize(
        ("path", "why", "status"),
        [
            ("missing.jpg", "No such file or directory", 66),
            (".", "it is a directory; with -r, the images in it are asked about", 66),
            ("/dev/null", "it is a device", 66),
            ("bad.jpg", "not an image", 65),
            ("large.jpg", "too many pixels", 65),
            ("crash.jpg", "it killed two workers", 70),
        ],
    )
    def test_a_failure_is_one_line_and_its_own_status(
        self, path: str, why: str, status: int
    ) -> None:
        assert swiprctl("predict", path) == ("", f"swiprctl: {path}: {why}\n", status)
        out, err, several = swiprctl("predict", "10.jpg", path, "20.jpg")
        assert out == "10.jpg,0.1,0.9\n20.jpg,0.2,0.8\n"
        assert (err, several) == (f"swiprctl: {path}: {why}\n", 1)
        Path("list").write_text(path)
        assert swiprctl("predict", "--files-from=list") == ("", err, 1)

    def test_verbose(self) -> None:
        out, err, status = swiprctl("predict", "-v", "10.jpg")
        assert (out, status) == ("0.1,0.9\n", 0)
        assert err.splitlines()[0].startswith("swiprctl: socket ")
        assert "10.jpg: queued 0.0 ms, decode 1.0 ms, infer 2.0 ms, model peer@1" in err

    def test_rows_come_out_while_the_next_name_is_awaited(self) -> None:
        with self.started("predict", "--files-from=-", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in (10, 20):
                process.stdin.write(f"{number}.jpg\n".encode())
                process.stdin.flush()
                assert select.select([process.stdout], [], [], 10)[0]
                assert process.stdout.readline().startswith(f"{number}.jpg,".encode())
            process.stdin.close()
            assert process.wait(10) == 0

    def test_rows_come_out_while_a_later_input_is_awaited(self) -> None:
        with self.started("predict", "10.jpg", "-", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"10.jpg,0.1,0.9\n"
            process.stdin.write(bytes(5))
            process.stdin.close()
            assert process.stdout.readline() == b"-,0.05,0.95\n"
            assert process.wait(10) == 0

    def test_a_reader_that_has_enough(self) -> None:
        Path("list").write_text("10.jpg\n" * 3000)
        done = subprocess.run(
            [
                "bash",
                "-c",
                '"$0" -m swiprctl predict --files-from=list | head -n 1; echo "${PIPESTATUS[0]}"',
                sys.executable,
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert done.stdout == "10.jpg,0.1,0.9\n141\n"
        assert done.stderr == ""

    def test_an_output_that_is_full_or_closed(self) -> None:
        script = '"$0" -m swiprctl predict 10.jpg >/dev/full; echo $?;'
        script += '"$0" -m swiprctl predict 10.jpg - >&- <&-; echo $?'
        done = subprocess.run(
            ["bash", "-c", script, sys.executable],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert done.stdout == "74\n74\n"
        assert done.stderr == (
            "swiprctl: standard output: No space left on device\n"
            "swiprctl: standard output: it is closed\n"
        )

    @contextlib.contextmanager
    def started(
        self, *words: str, stdin: int = subprocess.DEVNULL
    ) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(
            [sys.executable, "-m", "swiprctl", *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.mark.parametrize("piped", [False, True])
def test_few_descriptors_are_enough(tmp_path: Path, piped: bool) -> None:
    """An input that finds no descriptor waits for an answer that gives one back."""

    def held(connection: Connection) -> None:
        """Answer when no more comes: as many are under way by then as there can be."""
        under_way = []
        while True:
            if under_way and not select.select([connection.socket], [], [], 0.05)[0]:
                for one in under_way:
                    assert one.image is not None
                    connection.answer(one, float(len(one.image)))
                under_way = []
            under_way.append(connection.asked())

    for number in range(60):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(number))
    paths = " ".join(f"{n}.jpg" for n in range(60)) + (" - < <(cat 59.jpg)" if piped else "")
    with Peer(tmp_path / "s", held):
        done = subprocess.run(
            ["bash", "-c", f'ulimit -n 20; exec "$0" -m swiprctl predict {paths}', sys.executable],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
            env={**os.environ, "SWIPR_SOCKET": str(tmp_path / "s")},
        )
    assert (done.stderr, done.returncode) == ("", 0)
    out = "".join(f"{n}.jpg,{n}\n" for n in range(60))
    assert done.stdout == out + ("-,59\n" if piped else "")


def test_no_descriptor_at_all_is_told(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    code = (
        "import os, resource, sys\n"
        "from swiprctl.cli import run\n"
        "taken = [os.dup(0) for _ in range(int(sys.argv.pop(1)))]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 2, 64))\n"
        "run()\n"
    )
    with Peer(tmp_path / "s", daemon):
        done = subprocess.run(
            [sys.executable, "-c", code, "30", "predict", "0.jpg", "1.jpg"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
            env={**os.environ, "SWIPR_SOCKET": str(tmp_path / "s")},
        )
    assert (done.stderr, done.returncode) == (
        "swiprctl: cannot make a socket: Too many open files\n",
        69,
    )


def test_verbose_tells_of_each_retry_and_why(tmp_path: Path) -> None:
    def script(connection: Connection) -> None:
        asked = connection.asked()
        if connection.number == 0:
            connection.refuse(asked.id, Overloaded("the queue of 128 is full", 0.2))
            connection.asked()
            return  # the daemon dies with it
        connection.answer(asked, 0.5)

    image = tmp_path / "a.jpg"
    image.write_bytes(b"x")
    words = ["predict", "--timeout=9", str(image)]
    for options, told in ((["--verbose"], True), ([], False)):
        with Peer(tmp_path / "s", script):
            out, err, status = swiprctl(*words, *options, SWIPR_SOCKET=str(tmp_path / "s"))
        assert (out, status) == ("0.5\n", 0)
        again = [line for line in err.splitlines() if "is sent again" in line]
        assert len(again) == (2 if told else 0)
        if told:
            assert "request 1 is sent again in 0.2 s: overloaded: the queue of 128 is" in again[0]
            assert "the connection broke before its answer" in again[1]


def test_a_deadline_is_told(tmp_path: Path) -> None:
    def silent(connection: Connection) -> None:
        while True:
            connection.asked()

    with Peer(tmp_path / "s", silent):
        out, err, status = swiprctl(
            "predict", "-", "--timeout=0.2", f"--socket={tmp_path}/s", stdin=b"x"
        )
    assert (out, err, status) == ("", "swiprctl: -: no answer within 0.2 s\n", 124)


# -- no daemon


def test_no_daemon_is_told_once(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    image = tmp_path / "a.jpg"
    image.touch()
    err = f"swiprctl: no daemon answers on {path} (No such file or directory)\n"
    assert swiprctl("predict", str(image), SWIPR_SOCKET=path) == ("", err, 69)
    assert swiprctl("predict", *[str(image)] * 20, SWIPR_SOCKET=path) == ("", err, 69)
    for command in ("status", "model", "ping", "reload"):
        assert swiprctl(command, "--socket", path) == ("", err, 69)


def test_no_daemon_is_needed_to_know_that_there_is_no_file(tmp_path: Path) -> None:
    out, err, status = swiprctl("predict", f"{tmp_path}/a.jpg", SWIPR_SOCKET=f"{tmp_path}/s")
    assert (out, err, status) == (
        "",
        f"swiprctl: {tmp_path}/a.jpg: No such file or directory\n",
        66,
    )


def test_a_private_daemon_may_be_forbidden(tmp_path: Path) -> None:
    out, err, status = swiprctl(
        "predict", "--no-autostart", "-", XDG_RUNTIME_DIR=str(tmp_path), SWIPR_SOCKET=""
    )
    assert (out, status) == ("", 69)
    assert err.startswith(f"swiprctl: no daemon answers on {tmp_path}/swipr/default.sock")


# -- the other commands


@pytest.mark.usefixtures("peer")
class TestQuestions:
    def test_status(self) -> None:
        out, err, status = swiprctl("status")
        assert (err, status) == ("", 0)
        assert out == (
            "ready, 0 waiting\n\nstate   ready\nuptime  2 h 5 min\nqueue\n  waiting  0\n"
        )
        assert json.loads(swiprctl("status", "--json")[0])["uptime"] == 7500
        metrics = swiprctl("status", "--prometheus")[0].splitlines()
        assert any(
            re.fullmatch(r'swipr_uptime_seconds\{socket=".*/s"\} 7500.0', m) for m in metrics
        )

    def test_model(self) -> None:
        out, err, status = swiprctl("model")
        assert (err, status) == ("", 0)
        assert 'labels  sharp, "blurred, or so"\n' in out
        assert json.loads(swiprctl("model", "--json")[0])["labels"] == LABELS

    def test_ping(self) -> None:
        assert swiprctl("ping") == ("peer@1 answers as it should in 12.3 ms\n", "", 0)

    def test_reload(self) -> None:
        assert swiprctl("reload") == ("", "swiprctl: no weights.pth\n", 75)


def test_help_and_version() -> None:
    for words in (["--help"], ["-h"], ["predict", "--help"], ["predict", "x", "--help"]):
        out, err, status = swiprctl(*words)
        assert out.startswith("Usage: swiprctl predict [OPTION]... PATH...\n")
        assert (err, status) == ("", 0)
    assert max(map(len, out.splitlines())) <= 100
    assert swiprctl("--version") == (f"swiprctl {__version__}\n", "", 0)
    assert swiprctl("predict", "--version")[0] == f"swiprctl {__version__}\n"


USAGE: list[tuple[list[str], str]] = [
    ([], "no command given"),
    (["preditc"], "there is no command 'preditc'"),
    (["predict"], "nothing to predict"),
    (["predict", "--colour", "x"], "there is no option --colour"),
    (["predict", "-x"], "there is no option -x"),
    (["predict", "-Hx", "a"], "there is no option -x"),
    (["predict", "--timeout"], "--timeout needs a value"),
    (["predict", "--header=yes", "a"], "--header takes no value"),
    (["predict", "--files-from=a", "b"], "give one of them"),
    (["predict", "--files-from=a", "--files0-from=b"], "give one of them"),
    (["predict", "--json", "--format=csv", "a"], "--json and --format=csv: give one of them"),
    (["predict", "--format=xml", "a"], "--format: one of csv, tsv, jsonl, not 'xml'"),
    (["predict", "--labels", "--header", "a"], "--labels needs no --header"),
    (["predict", "--limit=3", "a"], "--limit goes with --sort=LABEL"),
    (["predict", "--reverse", "a"], "--reverse goes with --sort=LABEL"),
    (["predict", "--sort=a", "--limit=0", "a"], "--limit: a whole number from 1, not '0'"),
    (
        ["predict", "--sort", "-r", "photos"],
        "--sort needs a LABEL, and -r is an option; if it is meant: --sort=-r",
    ),
    (["predict", "--sort", "-rq", "photos"], "--sort needs a LABEL, and -rq is an option"),
    (["predict", "--output", "--header", "a"], "--output needs a value, and --header is an option"),
    (["predict", "--top", "0", "a"], "--top: a whole number from 1, not '0'"),
    (["predict", "--top=2.5", "a"], "--top: a whole number from 1, not '2.5'"),
    (["predict", "--top= 3", "a"], "--top: a whole number from 1, not ' 3'"),
    (["predict", "--top=00", "a"], "--top: a whole number from 1, not '00'"),
    (["predict", "--top", "9" * 5000 + "x", "a"], "--top: a whole number from 1, not '999"),
    (["predict", "--labels=yes", "a"], "--labels takes no value"),
    (["model", "--labels"], "--labels does not go with model"),
    (["status", "now"], "status takes no operand: 'now'"),
    (["status", "--header"], "--header does not go with status"),
    (["--json", "ping"], "--json does not go with ping"),
    (["ping", "--socket=a", "--model=b"], "give one of them"),
    (["ping", "--model=.b"], "not a model's name"),
    *(
        (["predict", "--timeout", value, "a"], "--timeout: seconds above 0, at most 3600")
        for value in ("0", "-1", "3600.1", "nan", "inf", "soon", "")
    ),
]


@pytest.mark.parametrize(("words", "why"), USAGE, ids=lambda x: " ".join(x)[:60] or "-")
def test_usage(words: list[str], why: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 64
    out, err = capfd.readouterr()
    assert out == ""
    assert why in err
    assert err.endswith("swiprctl: try 'swiprctl --help'\n")


def test_usage_as_a_process() -> None:
    out, err, status = swiprctl()
    assert (out, status) == ("", 64)
    assert "no command given" in err


def test_options_may_stand_anywhere() -> None:
    words = "--model chexnet predict -v a --timeout=2.5 b -H -- -c --header"
    arguments = parse(words.split())
    assert arguments.command == "predict"
    assert arguments.paths == ["a", "b", "-c", "--header"]
    assert (arguments.model, arguments.timeout) == ("chexnet", 2.5)
    assert (arguments.verbose, arguments.with_path, arguments.header) == (True, True, False)
    with pytest.raises(UsageError):
        parse(["predict", "--"])
    assert parse(["predict", "-"]).paths == ["-"]


# -- on a terminal


def test_a_terminal_is_told_why_it_waits_and_is_not_played_with(tmp_path: Path) -> None:
    def slow(connection: Connection) -> None:
        asked = connection.asked()
        time.sleep(1)
        connection.answer(asked, 1.0)

    (tmp_path / "a").touch()
    master, terminal = pty.openpty()
    heard = bytearray()

    def listen() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(master, 1000):
                heard.extend(data)

    listener = threading.Thread(target=listen)
    listener.start()
    with Peer(tmp_path / "s", slow):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "swiprctl", "predict", "--socket", f"{tmp_path}/s"),
                *("--no-progress", f"{tmp_path}/a", b"\x1b]0;title\x07\xff"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=20,
            check=False,
        )
    os.close(terminal)
    listener.join()
    os.close(master)
    first, second, third, _ = heard.split(b"\r\n")
    assert first.startswith(b"swiprctl: waiting for the daemon on ")
    assert second == b"swiprctl: \\x1b]0;title\\x07\\xff: No such file or directory"
    assert third.startswith(b"swiprctl: 1 answered, 1 failed (1 cannot-open) in ")
    assert done.stdout == f"{tmp_path}/a,1\n".encode()


# -- what it costs to start


def modules(words: Sequence[str], **environment: str) -> dict[str, str]:
    """What a process has imported after running a command: names and files.

    Without site(1): this environment's may import anything.
    """
    folders = [str(Path(package.__file__).parents[1]) for package in (errors, msgpack)]
    code = (
        "import sys\n"
        f"sys.path += {folders}\n"
        "from swiprctl.cli import main\n"
        f"assert main({list(words)}) == 0\n"
        "for name, module in list(sys.modules.items()):\n"
        "    print(name, getattr(module, '__file__', None) or '', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return dict(line.partition(" ")[::2] for line in done.stderr.splitlines())


# Seen to take a millisecond or more each; what a process of this kind is most tempted by.
SLOW = [
    "argparse",
    "asyncio",
    "contextlib",
    "csv",
    "dataclasses",
    "decimal",
    "enum",
    "functools",
    "gettext",
    "importlib.metadata",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "pickle",
    "random",
    "re",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "typing",
    "unittest",
    "urllib",
    "uuid",
    "weakref",
    "zipfile",
]


@pytest.mark.usefixtures("peer")
def test_predict_imports_nothing_slow() -> None:
    found = modules(["predict", "10.jpg", "20.jpg"])
    assert "swiprctl.client" in found
    assert [name for name in SLOW if name in found] == []
    assert [name for name in found if name.startswith("swiprd")] == []
    assert "swiprctl.autostart" not in found
    assert "swiprctl.report" not in found
    assert "swiprctl.formats" not in found
    assert "swiprctl.sorting" not in found


@pytest.mark.usefixtures("peer")
def test_the_client_has_no_compiled_code_but_the_standard_librarys() -> None:
    found = modules(["predict", "10.jpg"], MSGPACK_PUREPYTHON="1")
    assert "msgpack.fallback" in found
    compiled = {name: file for name, file in found.items() if file.endswith(".so")}
    library = str(Path(os.__file__).parent)
    assert [name for name, file in compiled.items() if not file.startswith(library)] == []
    assert [name for name, file in compiled.items() if "site-packages" in file] == []
    assert [name for name in ("torch", "numpy", "PIL") if name in found] == []


# -- reports


def test_durations() -> None:
    told = [duration(s) for s in (0.0, 0.0123, 0.9, 1.5, 99.0, 600.0, 7260.0, 260_000.0)]
    assert told == ["0 ms", "12.3 ms", "900 ms", "1.5 s", "99 s", "10 min", "2 h 1 min", "3 days"]


def test_a_headline_says_it_all() -> None:
    status: dict[str, object] = {
        "state": "ready",
        "reason": "serving focus@947a28b03d55",
        "model": "focus@947a28b03d55",
        "shape": {"workers": 2},
        "queue": {"waiting": 0},
        "requests": {"outcomes": {"ok": 2360, "bad-image": 4}},
    }
    assert headline(status) == "ready, focus, 2 workers, 0 waiting, 2,360 answered"
    one = {**status, "shape": {"workers": 1}, "requests": {"outcomes": {}}}
    assert headline(one) == "ready, focus, 1 worker, 0 waiting, 0 answered"
    loading = {"state": "loading", "model": "", "queue": {"waiting": 3}, "requests": 1}
    assert headline(loading) == "loading, 3 waiting"
    failed = {"state": "loading-failed", "reason": "weights.pth: not there"}
    assert headline(failed) == "loading-failed: weights.pth: not there"
    assert headline({}) == ""


def test_a_report_shows_what_there_is() -> None:
    fields: dict[str, object] = {
        "state": "ready",
        "reason": "",
        "labels": [f"label {n}" for n in range(1000)],
        "workers": [{"pid": 7, "state": "idle", "age": 3.0}, {"pid": 123, "since": 1}],
        "kills": {"total": 1, "last": []},
        "latency": {"bounds": [0.1, 1.0], "counts": [3, 0, 1], "sum": 4.2},
        "exact": True,
        "something_later": 1.5,
    }
    assert list(lines(fields)) == [
        "state            ready",
        "labels           1000: label 0, label 1, label 2, label 3, label 4, … (--json has all)",
        "workers",
        "  pid  state  age  since",
        "  7    idle   3 s",
        "  123              1",
        "kills",
        "  total  1",
        "latency",
        "  mean 1.05 s of 4",
        "  under 100 ms  3",
        "  longer        1",
        "exact            yes",
        "something later  1.5",
    ]
