"""Steps 1 to 5: installed, asked, sandboxed, killed, upgraded."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

from check import USER, Clients, check, journal, main_pid, run, show, sure, wait_for
from host import (
    BLURRED,
    HERE,
    HOME,
    PHOTO,
    ROW,
    SERVICE,
    SOCKET,
    UNITS,
    apt_install,
    ask,
    debs,
    row,
    status,
)


def install() -> None:
    """Installed from the packages; the first request starts it"""
    sure("useradd", "-m", USER)
    HOME.chmod(0o700)
    for photo in (HERE / "photos").iterdir():
        copy = HOME / photo.name
        shutil.copy(photo, copy)
        shutil.chown(copy, USER)
        copy.chmod(0o600)

    apt_install(*debs("debs", "swiprctl"))
    needs = sure("dpkg-query", "-W", "-f", "${Depends}", "swiprctl")
    check(needs == "python3-msgpack, python3:any", "the client needs python3 and msgpack", needs)
    alone = ask("predict", PHOTO)
    check(
        alone.returncode == 69 and "apt install swiprd" in alone.stderr,
        "with the client alone: exit 69, 'apt install swiprd'",
        alone,
    )

    apt_install(*debs("debs"))
    states = [run("systemctl", "is-active", unit).stdout.strip() for unit in (SOCKET, SERVICE)]
    check(states == ["active", "inactive"], "socket active, service inactive", states)
    check(show(SOCKET, "UnitFileState") == "enabled", "socket enabled for the next boot")
    for user in (USER, "root"):
        (listed,) = json.loads(sure("swiprctl", "list", "--json", user=user))
        stop = ask("stop", user=user)
        check(
            (listed["state"], listed["unit"], stop.returncode) == ("not-started", SERVICE, 77)
            and f"'sudo systemctl stop {SOCKET} {SERVICE}'" in stop.stderr,
            f"{user}'s list: {listed['state']}; stop: use systemctl",
            (listed, stop),
        )
    after = run("systemctl", "is-active", SERVICE).stdout.strip()
    check(after == "inactive", "neither has started it", after)
    share = Path("/usr/share")
    for file in (
        "bash-completion/completions/swiprctl",
        "fish/vendor_completions.d/swiprctl.fish",
        "zsh/vendor-completions/_swiprctl",
    ):
        check((share / file).is_file(), f"installed: {share / file}")

    begun = time.monotonic()
    first = ask("predict", PHOTO)
    check(
        first.returncode == 0 and ROW.fullmatch(first.stdout),
        f"{USER}'s first predict: {first.stdout.strip()} in {time.monotonic() - begun:.1f} s",
        first,
    )
    sharp, blurred = (float(ask("predict", p).stdout.split(",")[0]) for p in (PHOTO, BLURRED))
    check(sharp > blurred, f"sharp photo {sharp:.2f} sharp, blurred one {blurred:.2f}")
    text = show(SERVICE, "StatusText")
    check(text.startswith("serving focus@"), f"Status: {text}", text)

    lines = journal("-u", SERVICE)
    order = [
        next((i for i, line in enumerate(lines) if part in line), -1)
        for part in ("Starting ", "has answered the canary", "ready: serving", "Started ")
    ]
    check(
        -1 not in order and order == sorted(order),
        "in the journal: starting, canary answered, ready, started",
        lines,
    )
    sure("journalctl", "--sync")
    entries = sure("journalctl", "-q", "-b", "-u", SERVICE, "-o", "json").splitlines()
    said = [e for e in map(json.loads, entries) if e.get("_TRANSPORT") == "stdout"]
    check(
        said and all(e["PRIORITY"] == "6" and "<" not in e["MESSAGE"][:1] for e in said),
        "its messages have journald's priorities",
        said,
    )


def photos() -> None:
    """Photos that the daemon could not open itself"""
    expected = row()
    check(show(SERVICE, "ProtectHome") == "yes", "ProtectHome=yes")
    root = f"/proc/{main_pid()}/root"
    check(not os.listdir(f"{root}/home"), "the daemon sees an empty /home")
    mode = f"{HOME.stat().st_mode & 0o777:o}"
    check(mode == "700", f"and yet {PHOTO}, in a folder of mode {mode}, gives {expected.strip()}")

    with open(PHOTO, "rb") as photo:
        direct = ask("predict", "-", stdin=photo)
    piped = run("sh", "-c", f"cat {PHOTO} | swiprctl predict -", user=USER)
    check(direct.stdout == expected, "the same through standard input", direct)
    check(piped.stdout == expected, "the same through a pipe", piped)

    odd = [HOME / "with space.jpg", HOME / "a\nb.jpg", HOME / "-v.jpg"]
    for path in odd:
        shutil.copy(PHOTO, path)
        shutil.chown(path, USER)
    paths = [*map(str, odd), str(HOME / "missing.jpg"), BLURRED]
    listed = ask("predict", "-h", "--files0-from=-", input="".join(f"{p}\0" for p in paths))
    rows = listed.stdout.splitlines(keepends=True)
    check(
        listed.returncode == 1 and rows[:3] == [expected] * 3 and len(rows) == 4,
        "--files0-from: 5 paths, blanks and newlines in them, 4 rows in order",
        listed,
    )
    check(
        len(listed.stderr.splitlines()) == 1 and "missing.jpg: No such file" in listed.stderr,
        "one line for the one that is missing",
        listed.stderr,
    )
    forbidden = run("runuser", "-u", "swipr", "--", "swiprctl", "predict", PHOTO)
    check(forbidden.returncode == 66, "the user swipr cannot have it read", forbidden)


def sandbox() -> None:
    """The real torch inside the real sandbox"""
    outside = json.loads(sure("/usr/bin/python3", str(HERE / "probe.py")))
    unit = Path("/usr/lib/systemd/system/swiprd.service").read_text()
    unit = unit.replace("/usr/bin/swiprd serve", f"/usr/bin/python3 {HERE}/probe.py")
    unit = re.sub(
        r"^(Requires|After|WatchdogSec|Restart\w*|ExecReload|Also)=.*\n", "", unit, flags=re.M
    )
    unit = unit.replace("Type=notify\n", "Type=oneshot\nStandardOutput=file:/run/probe.json\n")
    (UNITS / "probe.service").write_text(unit)
    sure("systemctl", "daemon-reload")
    sure("systemctl", "start", "probe.service")
    inside = json.loads(Path("/run/probe.json").read_text())
    (UNITS / "probe.service").unlink()
    check(
        inside["capability"] == outside["capability"],
        f"torch's CPU capability inside as outside: {inside['capability']}",
        (inside, outside),
    )
    check(
        inside["isa"] == outside["isa"] and inside["isa"],
        f"oneDNN's instruction set inside as outside: {inside['isa']}",
        (inside, outside),
    )
    check(inside["convolutions"] > 0, f"oneDNN ran {inside['convolutions']} convolution(s)", inside)
    check(
        inside["sum"] == outside["sum"],
        "with the same result to the last bit",
        (inside["sum"], outside["sum"]),
    )
    for worker in status()["workers"]:
        lines = Path(f"/proc/{worker['pid']}/status").read_text()
        found = dict(re.findall(r"^(Seccomp|NoNewPrivs|CapEff):\s*(\S+)", lines, flags=re.M))
        check(
            found == {"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0" * 16},
            f"worker {worker['pid']}: seccomp, no new privileges, no capability",
            found,
        )


def kills() -> None:
    """kill -9 while 8 clients loop"""
    restarts = int(show(SERVICE, "NRestarts"))
    with Clients(PHOTO, row()) as clients:
        for _ in range(3):
            workers = [w["pid"] for w in status()["workers"] if w["state"] != "gone"]
            os.kill(workers[0], signal.SIGKILL)
            clients.more(16)
    clients.check()
    check(int(show(SERVICE, "NRestarts")) == restarts, "3 workers killed, no restart")

    with Clients(PHOTO, row()) as clients:
        old = status()["forkserver"]["pid"]
        os.kill(old, signal.SIGKILL)
        clients.more(16)
        wait_for(lambda: status()["forkserver"]["pid"] not in (0, old), "another forkserver")
        clients.more(16)
    clients.check()
    check(int(show(SERVICE, "NRestarts")) == restarts, "the forkserver killed, no restart")

    with Clients(PHOTO, row()) as clients:
        old = main_pid()
        begun = time.monotonic()
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: main_pid() not in (0, old), "another main process")
        took = time.monotonic() - begun
        clients.more(16)
    clients.check()
    now = int(show(SERVICE, "NRestarts"))
    check(
        now == restarts + 1,
        f"the daemon killed: restarted after {took:.1f} s, NRestarts {now}",
        now,
    )
    check(
        any("worker" in line and "SIGKILL" in line for line in journal("-u", SERVICE, "-p", "4")),
        "each kill is a warning in the journal",
        journal("-u", SERVICE, "-p", "4"),
    )


def upgrade() -> None:
    """Upgrade and restart while 8 clients loop"""
    old = main_pid()
    before = sure("dpkg-query", "-W", "-f", "${Version}", "swiprd")
    with Clients(PHOTO, row()) as clients:
        apt_install(*debs("next"))
        upgraded = wait_for(lambda: main_pid() not in (0, old) and main_pid(), "a new daemon")
        clients.more(32)
        sure("systemctl", "restart", SERVICE)
        restarted = main_pid()
        clients.more(32)
    clients.check()
    after = sure("dpkg-query", "-W", "-f", "${Version}", "swiprd")
    check(upgraded != old, f"{before} upgraded to {after}, and the daemon with it")
    check(restarted != upgraded, "systemctl restart")
    check(show(SOCKET, "ActiveState") == "active", "the socket was there all the time")
