"""Steps 6 and 7: models that change, break, and are more than one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from check import Clients, check, journal, main_pid, run, show, sure, wait_for
from host import (
    PHOTO,
    ROW,
    SERVICE,
    SETTINGS,
    SOCKET,
    ask,
    drop_in,
    forget_starts,
    no_drop_in,
    own_model,
    rename,
    row,
    status,
)


def reload() -> None:
    """Reload with a good and a broken model; a model and settings that are broken at boot"""
    start_instance()
    model = own_model("mine")
    labels = (model / "labels.txt").read_text()
    (SETTINGS / "swiprd.toml").write_text(f"model = '{model}'\n")
    sure("systemctl", "restart", SERVICE)
    first = status()["model"]
    pid = main_pid()

    with Clients(PHOTO, row()) as clients:
        rename(model, "second")
        seen: set[str] = set()
        reload = subprocess.Popen(["systemctl", "reload", SERVICE])
        while reload.poll() is None:
            seen.add(show(SERVICE, "ActiveState"))
        check(
            reload.returncode == 0 and status()["model"].startswith("second@"),
            f"systemctl reload: {first} gave way to {status()['model']}",
        )
        check("reloading" in seen, "systemd knew meanwhile that it was reloading", seen)
        rename(model, "third")
        sure("swiprctl", "reload")
        check(status()["model"].startswith("third@"), "swiprctl reload: the third model")

        (model / "labels.txt").write_text("one\ntwo\nthree\n")
        asked = run("swiprctl", "reload")
        check(
            asked.returncode == 75 and "model.toml: " in asked.stderr,
            f"swiprctl reload with a broken one: exit 75: {asked.stderr.strip()}",
            asked,
        )
        told = run("systemctl", "reload", SERVICE)
        check(told.returncode != 0, f"systemctl reload: exit {told.returncode}", told)
        clients.more(16)
        text = show(SERVICE, "StatusText")
        check(
            text.startswith("serving third@") and "reload failed: " in text, f"Status: {text}", text
        )
        said = ask("status").stdout
        check("reload error" in said, "swiprctl status keeps saying so", said)
        errors = journal("-u", SERVICE, "-p", "3")
        check(
            any(line.startswith("reload failed: ") for line in errors),
            "an error in the journal",
            errors,
        )
        (model / "labels.txt").write_text(labels)

        drop_in(SERVICE, "[Service]\nType=notify-reload\nExecReload=\n")
        rename(model, "fourth")
        sure("systemctl", "reload", SERVICE)
        check(
            status()["model"].startswith("fourth@"),
            "under Type=notify-reload, systemctl reload waits for the new model",
        )
        no_drop_in(SERVICE)
        check(main_pid() == pid, "all of it in one process")
    clients.check()

    (model / "labels.txt").write_text("one\ntwo\nthree\n")
    sure("systemctl", "stop", SERVICE)
    forget_starts()
    restarts = show(SERVICE, "NRestarts")
    for _ in range(8):
        refused = ask("predict", "--no-autostart", PHOTO)
    check(
        refused.returncode == 75 and "model.toml: " in refused.stderr,
        f"a model that is broken at boot: exit 75: {refused.stderr.strip()}",
        refused,
    )
    text = show(SERVICE, "StatusText")
    check(refused.stderr.strip().endswith(text), f"Status: {text}", text)
    states = (show(SERVICE, "NRestarts"), show(SOCKET, "ActiveState"))
    check(states == (restarts, "active"), "8 requests: no restart, the socket is there", states)
    (model / "labels.txt").write_text(labels)
    sure("systemctl", "restart", SERVICE)
    check(row(), "repaired, systemctl restart: served")

    (SETTINGS / "swiprd.toml").write_text("queue = 'long'\n")
    sure("systemctl", "stop", SERVICE)
    refused = ask("predict", "--no-autostart", PHOTO)
    check(
        refused.returncode == 75 and "swiprd.toml: queue: expected" in refused.stderr,
        f"settings that are broken at boot: exit 75: {refused.stderr.strip()}",
        refused,
    )
    check("queue: expected" in show(SERVICE, "StatusText"), "Status says so")
    (SETTINGS / "swiprd.toml").unlink()
    wait_for(lambda: ask("predict", "--no-autostart", PHOTO).returncode == 0, "served again")
    check(status()["model"].startswith("focus@"), "repaired: served without a restart")
    check(show(SERVICE, "NRestarts") == restarts, "and none was needed")


def start_instance() -> None:
    """Begin step 7: its daemon must be left alone for a minute."""
    rename(own_model("tiny", Path("/var/lib/swipr/models")), "tiny")
    # Five starts within 200 s end in the start limit: so, what is under a minute becomes one.
    (SETTINGS / "swiprd@tiny.toml").write_text("idle_timeout = 5\n")
    sure("systemctl", "enable", "--now", "swiprd@tiny.socket")
    first = ask("--model", "tiny", "predict", PHOTO)
    check(
        first.returncode == 0 and first.stdout == row(),
        f"(step 7 begins) swiprctl --model tiny: {first.stdout.strip()}",
        first,
    )


def instance() -> None:
    """A second model: its idle exit and its next start"""
    unit = "swiprd@tiny.service"
    begun = int(show(unit, "ActiveEnterTimestampMonotonic"))
    wait_for(lambda: show(unit, "ActiveState") == "inactive", "the instance left")
    lasted = (int(show(unit, "InactiveEnterTimestampMonotonic")) - begun) / 1e6
    check(lasted > 59, f"with idle_timeout = 5 it left after {lasted:.0f} s, not under 60", lasted)
    states = (show(unit, "Result"), show("swiprd@tiny.socket", "ActiveState"))
    check(states == ("success", "active"), "it left in peace, its socket stayed", states)
    again = ask("--model", "tiny", "predict", PHOTO)
    check(
        again.returncode == 0 and ROW.fullmatch(again.stdout), "the next request starts it", again
    )
    named = json.loads(ask("--model", "tiny", "model", "--json").stdout)["name"]
    check(named == "tiny", "and it is that model", named)
    folder = json.loads(ask("--model", "tiny", "model", "--json").stdout)["folder"]
    check(folder == "/var/lib/swipr/models/tiny", f"from {folder}", folder)
    (SETTINGS / "swiprd@tiny.toml").unlink()
    sure("systemctl", "enable", "--now", "swiprd@nosuch.socket")
    missing = ask("--model", "nosuch", "predict", PHOTO)
    check(
        missing.returncode == 75 and "/etc/swipr/models/nosuch" in missing.stderr,
        f"an instance without a model: {missing.stderr.strip()}",
        missing,
    )
    sure("systemctl", "disable", "--now", "swiprd@nosuch.socket", "swiprd@nosuch.service")
    other = ask("--model", "other", "predict", PHOTO)
    check(
        other.returncode == 69 and "swiprd@other.socket" in other.stderr,
        "one that is not enabled: exit 69, and what enables it",
        other,
    )
    taken = run("systemctl", "start", "swiprd@default.socket")
    check(
        taken.returncode != 0 and ROW.fullmatch(row()),
        "swiprd@default.socket cannot take the default's place",
        taken,
    )
    rearm = "swiprd-rearm@swiprd@default.service"
    wait_for(lambda: show(rearm, "ActiveState") == "inactive", "nor is it tried again")
