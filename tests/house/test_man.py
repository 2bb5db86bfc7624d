"""The man pages and the completions say what the programs take: no option, key or command is left
out, and none is named that is not there."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from swiprctl import arguments
from swiprctl.errors import SwiprError
from swiprctl.help import TEXT
from swiprctl.output import EX_IOERR
from swiprd import config
from swiprd.__main__ import _parser
from swiprd.folder import spec

PACKAGING = Path(__file__).parent.parent.parent / "packaging"
PAGES = {name: (PACKAGING / "man" / name).read_text() for name in ("swiprctl.1", "swiprd.8")}
MODEL = (PACKAGING / "man/swipr-model.5").read_text()
COMPLETIONS = {
    "bash": PACKAGING / "bash-completion/swiprctl",
    "zsh": PACKAGING / "zsh-completion/_swiprctl",
    "fish": PACKAGING / "fish-completion/swiprctl.fish",
}
_ALONE = {"--help", "--version", "-V"}
"""Options that stand for a command of their own."""

OPTIONS = {*arguments._OPTIONS, *_ALONE}
COMMANDS = {*arguments.COMMANDS, "help", "version"}


def flags(page: str) -> set[str]:
    """Options that a page describes: those of its list items."""
    items = re.findall(r"^\.It .*", PAGES[page], flags=re.M)
    return {f"-{name}" for item in items for name in re.findall(r"Fl (\S+)", item)}


def words(macro: str, page: str) -> set[str]:
    """What the items of a page's lists name with a macro."""
    items = re.findall(r"^\.It .*", page, flags=re.M)
    return {name for item in items for name in re.findall(rf"{macro} (\w+)", item)}


def test_every_option_of_the_client() -> None:
    assert flags("swiprctl.1") == OPTIONS


def test_every_command_of_the_client() -> None:
    assert words("Cm", PAGES["swiprctl.1"]) == set(arguments.COMMANDS)


def test_every_option_of_the_client_is_in_its_help() -> None:
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z0][\w-]*", TEXT))
    missing = OPTIONS - shown
    assert not missing
    assert set(re.findall(r"^  (\w+)  ", TEXT, flags=re.M)) == COMMANDS


def test_every_exit_status() -> None:
    def tree(error: type[SwiprError]) -> set[int]:
        return {error.exit_status}.union(*(tree(e) for e in error.__subclasses__()))

    page = PAGES["swiprctl.1"].partition(".Sh EXIT STATUS")[2].partition(".Sh ")[0]
    told = set(map(int, re.findall(r"^\.It (\d+)", page, flags=re.M)))
    assert told == {0, EX_IOERR} | tree(SwiprError)


def offered(shell: str) -> tuple[set[str], set[str]]:
    """Options and commands that a completion offers, by the lines that stand for one each."""
    text = COMPLETIONS[shell].read_text()
    if shell == "bash":
        lists = {
            name: set(re.findall(r"^ +(\S+)$", body, flags=re.M))
            for name, body in re.findall(r"local (commands|options)='\n(.*?)'", text, flags=re.S)
        }
        return {name.removesuffix("=") for name in lists["options"]}, lists["commands"]
    if shell == "zsh":
        options = set(re.findall(r"^ +'(-[\w-]+)=?\[", text, flags=re.M))
        return options, set(re.findall(r"^ +'(\w+):", text, flags=re.M))
    lines = [line for line in text.splitlines() if line.startswith("complete ")]
    long = {f"--{name}" for line in lines for name in re.findall(r" -l (\S+)", line)}
    short = {f"-{name}" for line in lines for name in re.findall(r" -s (\S+)", line)}
    return long | short, {name for line in lines for name in re.findall(r" -a (\w+)", line)}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_the_completion_offers_all_of_it(shell: str) -> None:
    assert offered(shell) == (OPTIONS, COMMANDS)


def test_fish_knows_which_word_is_a_command() -> None:
    (line,) = re.findall(r"^set -l commands (.*)$", COMPLETIONS["fish"].read_text(), flags=re.M)
    assert set(line.split()) == COMMANDS


def test_the_help_fits_a_terminal() -> None:
    assert max(map(len, TEXT.splitlines())) <= 80


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (
        action.choices
        for action in _parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(choices)


def test_every_option_of_the_daemon() -> None:
    parsers = [_parser(), *commands().values()]
    taken = {option for p in parsers for action in p._actions for option in action.option_strings}
    assert flags("swiprd.8") == taken


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_daemon(command: str) -> None:
    assert re.search(rf"^\.Cm {command}$|Nm Cm {command}\b", PAGES["swiprd.8"], flags=re.M)


def test_every_setting() -> None:
    assert words("Ic", PAGES["swiprd.8"]) == {one.name for one in fields(config.Settings)}


def test_every_key_of_a_model() -> None:
    head, *tables = re.split(r"^\.Ss The table (\w+)$", MODEL, flags=re.M)
    kinds = {"preprocess": spec.Preprocess, "serve": spec.Serve, "canary": spec.Canary}
    assert tables[::2] == list(kinds)
    for name, text in zip(tables[::2], tables[1::2], strict=True):
        assert words("Ic", text) == {one.name for one in fields(kinds[name])}, name
    keys = {one.name for one in fields(spec.ModelSpec)} - {"folder", *kinds}
    assert words("Ic", head) == keys
