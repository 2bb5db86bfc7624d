"""The composition root of the daemon, `swiprd serve`, and of what is done without one."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import resource
import sys
from pathlib import Path
from typing import NoReturn

from swiprctl.version import __version__
from swiprd import trust
from swiprd.config import ConfigError, Settings, add_options, load_settings
from swiprd.pack import options as pack_options
from swiprd.pool import forkserver_process
from swiprd.system import console, private_listener
from swiprd.system.log import set_up
from swiprd.system.systemd import Manager, listen_sockets

_EX_USAGE = 64
_EX_UNAVAILABLE = 69
_EX_CONFIG = 78

_COMMANDS = ("serve", "check", "pack", "trust")
_SHOWN = 40  # characters of a word that is none of them


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, not below twenty of usage; exits as sysexits(3) says."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        self.exit(_EX_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Leave, once what was printed (--help, --version) has got through."""
        try:
            if not status:  # else nothing was printed there
                console.put(b"")
        except console.OutputFailed as error:
            status = error.status
            message = None if error.unread else f"{self.prog}: {error}\n"
        super().exit(status, message)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return the exit status."""
    console.set_up()
    arguments = sys.argv[1:] if argv is None else argv
    parser = _parser()
    _check_command(parser, arguments)
    options = parser.parse_args(arguments)
    if options.command == "serve":
        set_up()
        try:
            return _serve(options)
        except ConfigError as error:
            print(f"swiprd: {error}", file=sys.stderr)
            return _EX_CONFIG
    with console.ended_by_interrupts():
        return _run_once(options)


def _run_once(options: argparse.Namespace) -> int:
    """Do what needs no daemon, in this process."""
    if options.command == "check":
        # Before torch is imported. The forkserver's other variables keep it from using threads.
        os.environ.setdefault("GOMP_SPINCOUNT", forkserver_process.ENVIRONMENT["GOMP_SPINCOUNT"])
        from swiprd.check import check  # not above: a daemon's front must not import torch

        return check(options.folder, options.images, options.device)
    if options.command == "trust":
        return trust.run(options.folder)
    from swiprd.pack.command import run

    return run(options)


def _check_command(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Refuse a command that there is not, with the nearest one by name."""
    command = arguments[0] if arguments else "-"
    if command.startswith("-") or command in _COMMANDS:
        return
    near = difflib.get_close_matches(command, _COMMANDS, n=1)
    hint = f"did you mean 'swiprd {near[0]}'?" if near else f"there are {', '.join(_COMMANDS)}"
    parser.error(f"there is no command {command[:_SHOWN]!r}: {hint}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="swiprd", description="Keep an image classifier loaded and answer on a Unix socket."
    )
    parser.add_argument("--version", action="version", version=f"swiprd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="answer on the sockets that systemd passes, or on --socket",
        description="Answer on the sockets that systemd passes, or on --socket.",
    )
    serve.add_argument("--socket", type=Path, metavar="PATH", help="listen on this path")
    serve.add_argument(
        "--private",
        action="store_true",
        help="the passed socket is this daemon's own: remove it when leaving; leave when the model"
        " is edited",
    )
    add_options(serve)
    check = commands.add_parser(
        "check",
        help="say what is in a model's folder and whether it works, without a daemon",
        description="Load a model, have it answer, and print what it is; then a row an image.",
    )
    check.add_argument("folder", type=Path, metavar="FOLDER")
    check.add_argument("images", type=Path, nargs="*", default=[], metavar="IMAGE")
    check.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run the model"
    )
    pack = commands.add_parser(
        "pack",
        help="make a model's folder from a checkpoint",
        description=pack_options.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pack_options.add_options(pack)
    trust = commands.add_parser(
        "trust",
        help="let the program in a model's folder run as you",
        description="Show the program in a model's folder, and note that it may run with your"
        " rights: these bytes and no others.",
    )
    trust.add_argument("folder", type=Path, metavar="FOLDER")
    return parser


def _serve(options: argparse.Namespace) -> int:
    try:
        listeners = listen_sockets()
        own = options.private
        managed, private = bool(listeners) and not own, bool(listeners) and own
        if not managed:
            load_settings(options)  # before the socket is made
        if not listeners and options.socket is not None:
            listeners, own = [private_listener.bind(options.socket)], True
    except (ValueError, private_listener.InUse) as error:
        print(f"swiprd: {error}", file=sys.stderr)
        return _EX_UNAVAILABLE
    except OSError as error:
        print(f"swiprd: {options.socket}: cannot listen: {error.strerror}", file=sys.stderr)
        return _EX_UNAVAILABLE
    if not listeners:
        print(
            "swiprd: no socket to serve on: name one with --socket PATH, or have systemd pass one"
            " (systemctl start swiprd.socket)",
            file=sys.stderr,
        )
        return _EX_USAGE
    os.umask(0o077)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a client, an image: one each
    manager = Manager()
    settings, fault = _settings(options, managed)
    if not fault:
        with contextlib.suppress(OSError):  # the daemon tries again, and says why not
            forkserver_process.start_ahead()
    import asyncio

    from swiprd.front.daemon import Daemon  # takes as long as what the forkserver imports meanwhile

    while True:
        daemon = Daemon(
            settings,
            listeners,
            manager,
            own=own,
            private=private,
            fault=fault,
            find_fault=lambda: _settings(options, managed)[1],
        )
        if not asyncio.run(daemon.run()):
            return 0
        settings, fault = _settings(options, managed)


def _settings(options: argparse.Namespace, managed: bool) -> tuple[Settings, str]:
    """The settings, and what is wrong with them.

    Under a service manager that is told to clients and waits for a repair; an exit would be
    counted, and too many of them take the socket away for good.

    Raises:
        ConfigError: they cannot be used, and no service manager is there.
    """
    try:
        return load_settings(options, managed=managed), ""
    except ConfigError as error:
        if not managed:
            raise
        return Settings(), str(error)


if __name__ == "__main__":
    sys.exit(main())
