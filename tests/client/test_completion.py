"""The completions in the shells that are there: a command, an option, a file behind `predict`."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from daemonprocess import PATIENCE

pytestmark = pytest.mark.timeout(60)

PACKAGING = Path(__file__).parent.parent.parent / "packaging"
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")

BASH = """
. {library}; . {file}
complete_() {{
    COMP_WORDS=(swiprctl "$@"); COMP_CWORD=$#; COMP_LINE="swiprctl $*"; COMP_POINT=${{#COMP_LINE}}
    COMPREPLY=(); compopt() {{ :; }}; _swiprctl; echo "${{COMPREPLY[*]}}"
}}
complete_ st; complete_ --no-a; complete_ -v predict pic; complete_ status p
complete_ --files-from pic
"""


@pytest.mark.skipif(not BASH_COMPLETION.exists(), reason="sudo apt install bash-completion")
def test_bash(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").touch()
    script = BASH.format(library=BASH_COMPLETION, file=PACKAGING / "bash-completion/swiprctl")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "status stop",
        "--no-autostart",
        "picture.jpg",
        "",
        "picture.jpg",
    ]
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("fish") is None, reason="sudo apt install fish")
def test_fish(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").touch()
    (tmp_path / "pets").mkdir()
    asked = ("st", "--no-a", "-v predict pic", "status p", "--files-from pic", "--model pe")
    script = f"source {PACKAGING}/fish-completion/swiprctl.fish\n" + "\n".join(
        f"complete -C 'swiprctl {line}' | string split -f 1 \\t | string join ' '; echo"
        for line in asked
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line for line in done.stdout.split("\n") if line]
    assert found == [
        "status stop",
        "--no-autostart",
        "picture.jpg",
        "picture.jpg",
        "pets/",
    ]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="sudo apt install zsh")
def test_zsh(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").touch()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe(
            "zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "HOME": str(tmp_path)}
        )
    try:
        shell = _Shell(terminal)
        shell.type(f"PROMPT='%%'; fpath=({PACKAGING}/zsh-completion $fpath)\n")
        shell.type("autoload -U compinit; compinit -u -D; print rea''dy\n")
        shell.expect("ready")
        for typed, completed in (
            ("swiprctl pred\t", "swiprctl predict "),
            ("swiprctl --no-au\t", "swiprctl --no-autostart "),
            ("swiprctl -v predict pic\t", "swiprctl -v predict picture.jpg "),
            ("swiprctl --timeo\t", "swiprctl --timeout="),
        ):
            shell.type(typed)
            shell.expect(completed)
            shell.type("\x15")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


class _Shell:
    """An interactive shell on a terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._shown = ""

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def expect(self, text: str) -> None:
        """Wait until it shows a text."""
        until = time.monotonic() + PATIENCE
        while text not in re.sub(r"\x1b\[[\d;?]*\w|[\x00-\x1f]", "", self._shown):
            assert time.monotonic() < until, f"{text!r} not in {self._shown!r}"
            if select.select([self._terminal], [], [], 0.2)[0]:
                self._shown += os.read(self._terminal, 4096).decode(errors="replace")
        self._shown = ""
