"""A row is printed with the labels of the model that made it, whatever is loaded meanwhile."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess
from peer import Connection, Peer

from swiprctl import Client, Prediction
from swiprctl.errors import TryLater
from swiprctl.protocol import encode

pytestmark = pytest.mark.timeout(120)

MODELS = {
    "cats@1": (["cat", "dog"], [0.5, 0.5]),
    "cars@2": (["car", "bus"], [0.5, 0.9]),
    "cats@3": (["cat", "dog"], None),
}


def reloading(*models: str, old: bool = False) -> Callable[[Connection], None]:
    """A daemon that answers each image with another model, and has the last of them by then.

    Args:
        old: it does not know that labels can be asked for with a row.
    """

    def script(connection: Connection) -> None:
        served = iter(models)
        while True:
            asked = connection.asked()
            if asked.op == "model":
                labels, thresholds = MODELS[models[-1]]
                connection.reply(asked.id, model=models[-1], labels=labels, thresholds=thresholds)
                continue
            model = next(served)
            fields: dict[str, object] = {"probabilities": [0.75, 0.25], "model": model}
            known = asked.fields.get("labels")
            if known is not None and known != model and not old:
                fields["labels"], fields["thresholds"] = MODELS[model]
            connection.reply(asked.id, **fields)

    return script


def predict(folder: Path, *words: str, inputs: int) -> tuple[list[str], list[str], int]:
    images = [folder / f"{number}.jpg" for number in range(inputs)]
    for image in images:
        image.write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "swiprctl", "predict", "-h", *words, *images],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "SWIPR_SOCKET": str(folder / "s")},
    )
    return done.stdout.splitlines(), done.stderr.splitlines(), done.returncode


def test_pairs_are_of_the_model_that_made_them(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", reloading("cats@1", "cars@2", "cars@2", "cats@1")):
        out, err, status = predict(tmp_path, "--top=2", inputs=4)
    assert (err, status) == ([], 0)
    cat, car = "cat,0.75,dog,0.25", "car,0.75,bus,0.25"
    assert out == [cat, car, car, cat]


def test_thresholds_are_too(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", reloading("cats@1", "cats@3", "cars@2")):
        out, err, status = predict(tmp_path, "--labels", inputs=3)
    assert (err, status) == ([], 0)
    assert out == ["cat,0.75", "cat,0.75,dog,0.25", "car,0.75"]


def test_so_is_json(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", reloading("cats@1", "cars@2")):
        out, err, status = predict(tmp_path, "--json", inputs=2)
    assert (err, status) == ([], 0)
    rows = [(row["model"], list(row["probabilities"])) for row in map(json.loads, out)]
    assert rows == [("cats@1", ["cat", "dog"]), ("cars@2", ["car", "bus"])]


def test_no_row_stands_below_another_models_header(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", reloading("cats@1", "cars@2", "cats@3")):
        out, err, status = predict(tmp_path, "--header", inputs=3)
    # The third model is another, with the same labels.
    assert out == ["cat,dog", "0.75,0.25", "0.75,0.25"]
    (line,) = err
    assert line.startswith(
        f"swiprctl: {tmp_path}/1.jpg: cars@2 has answered, which has other labels"
    )
    assert status == 1


@pytest.mark.parametrize("words", [["--labels"], ["--top=1"], ["--json"], ["--header"]])
def test_a_daemon_that_tells_no_labels_with_a_row_is_asked_for_them(
    tmp_path: Path, words: list[str]
) -> None:
    with Peer(tmp_path / "s", reloading("cars@2", "cars@2", old=True)):
        out, err, status = predict(tmp_path, *words, inputs=2)
    assert (err, status) == ([], 0)
    assert all("car" in line or line == "0.75,0.25" for line in out)
    # It has reloaded before it was asked.
    with Peer(tmp_path / "s", reloading("cats@1", "cars@2", old=True)):
        out, err, status = predict(tmp_path, *words, inputs=2)
    (line,) = err
    assert line.startswith(f"swiprctl: {tmp_path}/0.jpg: cats@1 answered, but has been replaced")
    assert status == 1
    assert "cat" not in "".join(out)
    assert out[-1].replace('"', "").count("car") or out == ["car,bus", "0.75,0.25"]
    with Peer(tmp_path / "s", reloading("cats@1", "cars@2", old=True)):
        assert predict(tmp_path, *words, inputs=1)[2] == TryLater.exit_status


def test_labels_come_once_for_a_model_and_only_where_they_are_wanted(tmp_path: Path) -> None:
    wanted: list[object] = []

    def script(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            wanted.append(asked.fields.get("labels"))
            fields: dict[str, object] = {}
            if asked.fields.get("labels") == "":
                fields = {"labels": ["cat", "dog"]}
            connection.reply(asked.id, probabilities=[0.75, 0.25], model="cats@1", **fields)

    with Peer(tmp_path / "s", script):
        with Client(f"{tmp_path}/s", labels=True) as client:
            for _ in range(3):
                assert client.predict(b"x").labels == ("cat", "dog")
        with Client(f"{tmp_path}/s", labels=False) as client:
            assert client.predict(b"x").labels is None
    assert wanted == ["", "cats@1", "cats@1", None]


# -- the daemon


@pytest.fixture
def daemon_of_ten(start_daemon: StartDaemon, tmp_path: Path) -> DaemonProcess:
    from modelfolders import make_folder

    return start_daemon("--timeout=60", model=make_folder(tmp_path / "model")).wait_ready()


def relabel(daemon: DaemonProcess, folder: Path) -> None:
    """Load the model anew, with other labels."""
    (folder / "labels.txt").write_text("".join(f"other{n}\n" for n in range(10)))
    with daemon.connect() as peer:
        assert peer.ask("reload").error is None


def test_the_daemon_tells_them_with_a_row(
    daemon_of_ten: DaemonProcess, tmp_path: Path, photos: list[bytes]
) -> None:
    with Client(str(daemon_of_ten.path), labels=True) as client:
        first = client.predict(photos[0])
        assert first.labels == tuple(f"class{n}" for n in range(10))
        relabel(daemon_of_ten, tmp_path / "model")
        second, third = (answer for _, answer in client.predict_many(photos[:2]))
        for answer in (second, third):
            assert isinstance(answer, Prediction)
            assert answer.labels == tuple(f"other{n}" for n in range(10))
            assert answer.model != first.model
        assert client.model()["labels"] == list(answer.labels)


def test_a_row_that_is_made_over_a_reload_has_its_models(
    daemon_of_ten: DaemonProcess, tmp_path: Path, slow_image: Path
) -> None:
    """The old model decodes yet, as a rule, when the new one serves."""
    with daemon_of_ten.connect() as peer, open(slow_image, "rb") as image:
        labels = {peer.ask("model").fields["model"]: [f"class{n}" for n in range(10)]}
        frame = encode({"id": 7, "op": "predict", "labels": ""})
        socket.send_fds(peer.socket, [frame], [image.fileno()])
        daemon_of_ten.wait_status(lambda s: any(w["state"] == "busy" for w in s["workers"]))
        relabel(daemon_of_ten, tmp_path / "model")
        row = peer.receive()
        labels[peer.ask("model").fields["model"]] = [f"other{n}" for n in range(10)]
    assert row.error is None
    assert row.fields["labels"] == labels[row.fields["model"]]
