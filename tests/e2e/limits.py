"""Steps 8, 9 and 12: who may, what happens after too many failures, what is left after removal."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

from check import USER, check, main_pid, run, show, sure, wait_for
from host import HERE, PHOTO, ROW, SERVICE, SETTINGS, SOCKET, ask, drop_in, no_drop_in, row


def permissions() -> None:
    """Who may ask, and who may reload"""
    refused = ask("reload")
    check(
        refused.returncode == 77 and "sudo" in refused.stderr,
        f"{USER} may not reload: exit 77: {refused.stderr.strip()}",
        refused,
    )
    taken = ask("reload", user="swipr")
    check(taken.returncode == 0, "the daemon's own user may", taken)
    sure("groupadd", "photo")
    sure("useradd", "-m", "-G", "photo", "bob")
    photo = "/home/bob/photo.jpg"
    shutil.copy(PHOTO, photo)
    shutil.chown(photo, "bob")
    drop_in(SOCKET, "[Socket]\nSocketGroup=photo\nSocketMode=0660\n")
    sure("systemctl", "restart", SOCKET)
    refused = ask("predict", PHOTO)
    check(
        refused.returncode == 77 and "group photo" in refused.stderr,
        f"a socket for a group, {USER} not in it: exit 77: {refused.stderr.strip()}",
        refused,
    )
    taken = ask("predict", photo, user="bob")
    check(taken.returncode == 0 and ROW.fullmatch(taken.stdout), "bob, who is, gets a row", taken)
    no_drop_in(SOCKET)
    sure("systemctl", "restart", SOCKET)
    check(ROW.fullmatch(row()), f"without the drop-in {USER} gets one again")


def restarts() -> None:
    """The restart policy, and the way back when it has given up"""
    names = ("Restart", "RestartUSec", "StartLimitIntervalUSec", "StartLimitBurst")
    policy = [show(SERVICE, name) for name in names]
    check(
        policy == ["on-failure", "10s", "3min 20s", "5"],
        "on-failure, after 10 s, 5 times in 200 s",
        policy,
    )
    row()
    restarts, old = int(show(SERVICE, "NRestarts")), main_pid()
    begun = time.monotonic()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: main_pid() not in (0, old), "the restart")
    took = time.monotonic() - begun
    check(9.5 < took < 15, f"killed, and nobody asks: started again after {took:.1f} s", took)
    wait_for(lambda: show(SERVICE, "ActiveState") == "active", "ready")
    check(int(show(SERVICE, "NRestarts")) == restarts + 1, "NRestarts went up by 1")

    def break_it(more: str = "") -> None:
        sure("systemctl", "stop", SERVICE)
        drop_in(SERVICE, f"[Service]\nExecStart=\nExecStart=/usr/bin/false\n{more}")
        ask("predict", "--no-autostart", "--timeout=3", PHOTO)
        wait_for(lambda: show(SOCKET, "ActiveState") == "failed", "the socket failed")

    drop_in(
        "swiprd-rearm@swiprd.service",
        "[Service]\nExecStart=\nExecStart=/usr/bin/sleep 20\n"
        "ExecStart=/usr/bin/systemctl --no-block reset-failed swiprd.service\n"
        "ExecStart=/usr/bin/systemctl --no-block start swiprd.socket\n",
    )
    break_it()
    check(
        show(SOCKET, "Result") == "service-start-limit-hit",
        "5 failures: the socket is gone, too",
        show(SOCKET, "Result"),
    )
    lost = ask("predict", "--no-autostart", PHOTO)
    way = "systemctl reset-failed swiprd.service; systemctl start swiprd.socket"
    check(lost.returncode == 69 and way in lost.stderr, "the client names the way back", lost)
    no_drop_in(SERVICE)
    sure("sh", "-c", way)
    check(ROW.fullmatch(row()), "and it is one")
    waiting = show("swiprd-rearm@swiprd.service", "ActiveState")
    check(waiting == "inactive", "nothing else is about to do it any more", waiting)

    break_it("RestartSec=1\n")
    no_drop_in(SERVICE)
    wait_for(lambda: show(SOCKET, "ActiveState") == "active", "the socket listens again")
    check(ROW.fullmatch(row()), "left alone, the socket comes back by itself (here after 20 s)")
    no_drop_in("swiprd-rearm@swiprd.service")


def hygiene() -> None:
    """Analysed, tested as a package, removed without a trace"""
    for unit in ("swiprd.service", "swiprd@tiny.service"):
        said = run("systemd-analyze", "security", "--no-pager", "--threshold=5", unit)
        overall = re.search(r"Overall exposure level.*", said.stdout)
        check(said.returncode == 0, f"{unit}: {overall and overall[0]}", said.stdout[-300:])
    units = [
        f"/usr/lib/systemd/system/{name}"
        for name in (
            "swiprd.socket",
            "swiprd.service",
            "swiprd@.socket",
            "swiprd@.service",
            "swiprd-rearm@.service",
        )
    ]
    said = run("systemd-analyze", "verify", "--man=no", *units)
    check(
        (said.returncode, said.stdout + said.stderr) == (0, ""),
        "systemd-analyze verify: silent",
        said,
    )
    said = run(
        *("autopkgtest", "--no-built-binaries", "--ignore-restrictions=isolation-container"),
        *(str(HERE / "source"), "--", "null"),
    )
    summary = re.findall(r"^predict +(\S+)", said.stdout + said.stderr, flags=re.M)
    check(
        said.returncode == 0 and summary[-1:] == ["PASS"],
        "autopkgtest: predict PASS",
        (said.returncode, said.stdout[-2000:], said.stderr[-2000:]),
    )

    sure("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "purge", "swipr*")
    listed = run("systemctl", "list-units", "--all", "--no-legend", "--plain", "swipr*").stdout
    check(not listed, "purged: no unit", listed)
    processes = run("pgrep", "-au", "swipr").stdout
    check(not processes, "no process", processes)
    models = ["/etc/swipr/models/mine", "/var/lib/swipr/models/tiny"]
    for model in models:
        check(Path(model).is_dir(), f"the administrator's {model} was left alone")
        shutil.rmtree(model)
    for file in SETTINGS.glob("*.toml"):
        file.unlink()
    for folder in ("/etc/swipr/models", "/etc/swipr", "/var/lib/swipr/models", "/var/lib/swipr"):
        if Path(folder).is_dir():
            Path(folder).rmdir()
    left = sure(
        "find",
        "/etc",
        "/run",
        "/usr",
        "/var",
        "-xdev",
        "-name",
        "*swipr*",
        "-not",
        "-path",
        "/var/lib/apt/*",
        "-not",
        "-path",
        "/var/log/*",
    )
    check(not left, "no file", left)
