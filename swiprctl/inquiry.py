"""The commands about daemons and not about images: status, model, ping, reload, list and stop."""

from __future__ import annotations

import os
import sys

from swiprctl.output import say, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.arguments import Arguments
    from swiprctl.client import Client

_SOME_FAILED = 1


def inquire(client: Client, arguments: Arguments) -> int:
    """Ask one daemon what `arguments.command` asks; give the exit status.

    Raises:
        SwiprError: it does not answer, or refuses.
        OutputFailed: standard output takes nothing more.
    """
    fields = getattr(client, arguments.command)()
    if arguments.prometheus:
        from swiprctl.prometheus import samples

        text = "\n".join(samples(fields, client.socket_path))
    elif arguments.json:
        import json

        text = json.dumps(fields, indent=2, default=repr)
    elif arguments.command == "reload":
        text = f"now serving {fields.get('model', 'the model')}"
    elif arguments.command == "ping":
        from swiprctl.report import duration

        seconds = fields.get("seconds")
        took = f" in {duration(seconds)}" if isinstance(seconds, int | float) else ""
        text = f"{fields.get('model', 'the model')} answers as it should{took}"
    else:
        from swiprctl.report import headline, lines

        front = [headline(fields), ""] if arguments.command == "status" else []
        text = "\n".join([*front, *lines(fields)])
    _print(text)
    return 0


def list_daemons(arguments: Arguments) -> int:
    """Print every daemon that this user can reach; give the exit status.

    Raises:
        OutputFailed: standard output takes nothing more.
    """
    from swiprctl.listing import entries, table

    listed = entries(arguments.timeout)
    if arguments.json:
        import json

        _print(json.dumps(listed, indent=2))
    elif listed:
        # A pty that nobody gave a size says 0.
        width = (os.get_terminal_size(1).columns or 80) if os.isatty(1) else None
        _print("\n".join(table(listed, width)))
    else:
        say("no daemon is here; 'swiprctl predict' starts one of your own")
    return 0


def stop_daemons(arguments: Arguments) -> int:
    """Have daemons of this user's own leave; give the exit status.

    Raises:
        SwiprError: the daemon that was named could not be stopped.
        OutputFailed: standard output takes nothing more.
    """
    from swiprctl.stopping import stop, stop_all

    if not arguments.all:
        stop(arguments.socket, arguments.model, arguments.timeout, _print)
        return 0
    failed = stop_all(arguments.timeout, _print)
    for error in failed:
        say(str(error))
    return _SOME_FAILED if failed else 0


def _print(text: str) -> None:
    """Put text for people on standard output, in its encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    write(f"{text}\n".encode(encoding, "backslashreplace"))
