"""The man pages and the completion say what the programs take: no option, key or command is left
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
COMPLETION = (PACKAGING / "bash-completion/swiprctl").read_text()


def flags(page: str) -> set[str]:
    """Options that a page describes: those of its list items."""
    items = re.findall(r"^\.It .*", PAGES[page], flags=re.M)
    return {f"-{name}" for item in items for name in re.findall(r"Fl (\S+)", item)}


def words(macro: str, page: str) -> set[str]:
    """What the items of a page's lists name with a macro."""
    items = re.findall(r"^\.It .*", page, flags=re.M)
    return {name for item in items for name in re.findall(rf"{macro} (\w+)", item)}


def test_every_option_of_the_client() -> None:
    assert flags("swiprctl.1") == {*arguments._OPTIONS, "--help", "--version"}


def test_every_command_of_the_client() -> None:
    assert words("Cm", PAGES["swiprctl.1"]) == set(arguments.COMMANDS)


def test_every_option_of_the_client_is_in_its_help() -> None:
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z0][\w-]*", TEXT))
    missing = {*arguments._OPTIONS, "--help", "--version"} - shown
    assert not missing
    assert set(arguments.COMMANDS) <= set(re.findall(r"^  (\w+)  ", TEXT, flags=re.M))


def test_every_exit_status() -> None:
    def tree(error: type[SwiprError]) -> set[int]:
        return {error.exit_status}.union(*(tree(e) for e in error.__subclasses__()))

    page = PAGES["swiprctl.1"].partition(".Sh EXIT STATUS")[2].partition(".Sh ")[0]
    told = set(map(int, re.findall(r"^\.It (\d+)", page, flags=re.M)))
    assert told == {0, EX_IOERR} | tree(SwiprError)


def test_the_completion_offers_all_of_it() -> None:
    offered = set(re.findall(r"(?<![\w-])--?[a-zA-Z0][\w-]*", COMPLETION))
    assert {*arguments._OPTIONS, "--help", "--version"} <= offered
    assert f"-W '{' '.join(arguments.COMMANDS)}'" in COMPLETION


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
