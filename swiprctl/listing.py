"""`swiprctl list`: every daemon that this user can reach, and how it is.

A daemon that hangs costs the list two seconds. A socket that systemd listens on is asked only where
its service runs, as asking would start it; between the look and the question it may have ended,
and is then started all the same.
"""

from __future__ import annotations

from swiprctl.places import every_socket
from swiprctl.questions import Question, ask
from swiprctl.report import duration, megabytes
from swiprctl.units import Unit, Units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from swiprctl.address import Address

_PATIENCE = 2.0
_COLUMNS = ("model", "state", "uptime", "memory", "pid")
_STARTS = "its first request starts it"
_NOT_ASKED = "systemctl does not answer, and to ask might start it"

Entry = dict[str, object]


def entries(patience: float | None = None) -> list[Entry]:
    """Describe each daemon: a map of socket, kind, unit, state, reason, model, folder, pid, uptime,
    memory and log, as swiprctl(1) has them; None for what is not known.

    Args:
        patience: seconds for all answers together.
    """
    units = Units()
    found: dict[str, Entry] = {}
    asked = []
    for address in every_socket():
        unit = units.of(address.path)
        if unit is not None and not unit.started:
            found[address.path] = _entry(address, unit, "not-started", _STARTS)
        elif unit is None and address.kind == "system" and not units.known:
            found[address.path] = _entry(address, unit, "unknown", _NOT_ASKED)
        else:
            found[address.path] = {}  # keeps its place
            asked.append(address)
    for one in ask(asked, "status", _PATIENCE if patience is None else patience):
        one.close()
        found[one.address.path] = _answered(one, units.of(one.address.path))
    return list(found.values())


def table(listed: list[Entry], width: int | None) -> Iterator[str]:
    """Give the lines for people: a row for each daemon, and below it where its things are.

    Args:
        width: columns that a line may have; a path that has more is shortened in its middle, and a
            reason goes on in the next line. None: nothing is shortened.
    """
    rows = [_COLUMNS, *(_cells(entry) for entry in listed)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    if width is not None:
        widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - 2 * len(widths[1:])))
    for row, entry in zip(rows, [{}, *listed], strict=True):
        cells = [_shortened(row[0], widths[0]).ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(size) for cell, size in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join(cells).rstrip()
        for label, value in _details(entry):
            room = None if width is None else width - 10
            for number, line in enumerate(_folded(label, value, room)):
                yield f"  {label if not number else '':<6}  {line}"


def _entry(address: Address, unit: Unit | None, state: str, reason: str) -> Entry:
    return {
        "socket": address.path,
        "kind": address.kind,
        "unit": None if unit is None else unit.service,
        "state": state,
        "reason": reason,
        "model": None,
        "folder": None,
        "pid": None,
        "uptime": None,
        "memory": None,
        "log": None if unit is None else unit.log,
    }


def _answered(question: Question, unit: Unit | None) -> Entry:
    """Make an entry of an answer, of which only what has the right type is taken."""
    entry = _entry(question.address, unit, question.state, question.reason)
    for key, kind in (
        *(("state", str), ("reason", str), ("model", str), ("folder", str), ("log", str)),
        *(("pid", int), ("memory", int), ("uptime", (int, float))),
    ):
        value = (question.fields or {}).get(key)
        if isinstance(value, kind) and not isinstance(value, bool) and value != "":
            entry[key] = value
    return entry


def _cells(entry: Entry) -> tuple[str, ...]:
    uptime, memory, pid = (entry[key] for key in ("uptime", "memory", "pid"))
    return (
        _printable(entry["model"] or "-"),
        _printable(entry["state"]),
        duration(uptime) if isinstance(uptime, int | float) else "",
        megabytes(memory) if isinstance(memory, int) else "",
        str(pid) if isinstance(pid, int) else "",
    )


def _details(entry: Entry) -> Iterator[tuple[str, str]]:
    for key in ("socket", "folder", "log", "unit", "reason"):
        value = entry.get(key)
        if value and not (key == "reason" and entry["state"] == "ready"):
            yield key, _printable(value)


def _folded(label: str, value: str, room: int | None) -> list[str]:
    if room is None:
        return [value]
    if label == "reason":
        import textwrap

        return textwrap.wrap(value, max(room, 20))
    return [_shortened(value, room)]


def _shortened(text: str, room: int) -> str:
    """Cut the middle out of a text that has no room: a path's ends say most."""
    if len(text) <= room:
        return text
    tail = 2 * (room - 1) // 3
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"


def _printable(value: object) -> str:
    """What a daemon or a file's name says cannot do anything to a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(value)
    )
