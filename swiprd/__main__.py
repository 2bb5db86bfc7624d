"""The composition root of the daemon: `swiprd serve`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import NoReturn

from swiprctl.version import __version__
from swiprd import ownsocket
from swiprd.config import ConfigError, add_options, load_settings
from swiprd.daemon import Daemon
from swiprd.log import set_up
from swiprd.systemd import Manager, listen_sockets

_EX_USAGE = 64
_EX_UNAVAILABLE = 69
_EX_CONFIG = 78


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, not below twenty of usage; exits as sysexits(3) says."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        self.exit(_EX_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return the exit status."""
    options = _parser().parse_args(argv)
    set_up()
    try:
        return _serve(options)
    except ConfigError as error:
        print(f"swiprd: {error}", file=sys.stderr)
        return _EX_CONFIG


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
        help="the passed socket is this daemon's own: remove it when leaving",
    )
    add_options(serve)
    return parser


def _serve(options: argparse.Namespace) -> int:
    settings = load_settings(options)
    try:
        listeners = listen_sockets()
        own = options.private
        if not listeners and options.socket is not None:
            listeners, own = [ownsocket.bind(options.socket)], True
    except (ValueError, ownsocket.InUse) as error:
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
    asyncio.run(Daemon(settings, listeners, Manager(), own=own).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
