"""The daemon's descriptions of itself, for people to read. Pure: fields in, lines out.

Unknown fields are shown, too, so that an older client can print a newer daemon's status.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_BYTES = frozenset({"memory"})
_DURATIONS = frozenset({"age", "ago", "oldest", "seconds", "sum", "uptime"})
_LONG_LIST = 12
_SHOWN = 5


def headline(fields: dict[str, object]) -> str:
    """Say in one line how a daemon is, from its `status`: what matters, and no more."""

    def at(key: str, inner: str) -> object:
        found = fields.get(key)
        return found.get(inner) if isinstance(found, dict) else None

    state = str(fields.get("state", ""))
    parts = [state, str(fields.get("model", "")).partition("@")[0]]
    outcomes = at("requests", "outcomes")
    answered = outcomes.get("ok", 0) if isinstance(outcomes, dict) else None
    workers = at("shape", "workers")
    for number, what in (
        (workers, "worker" if workers == 1 else "workers"),
        (at("queue", "waiting"), "waiting"),
        (answered, "answered"),
    ):
        if isinstance(number, int):
            parts.append(f"{number:,} {what}")
    line = ", ".join(part for part in parts if part)
    # A model that serves all the same is what the other lines are for.
    return (
        f"{line}: {fields['reason']}" if state == "loading-failed" and "reason" in fields else line
    )


def lines(fields: dict[str, object], indent: str = "") -> Iterator[str]:
    """Give one line a value, aligned; nested maps and tables are indented; nothing empty."""
    fields = {key: value for key, value in fields.items() if value not in ("", None, [], {})}
    plain = [key for key, value in fields.items() if not _nested(value)]
    width = max(map(len, plain), default=0)
    for key, value in fields.items():
        label = key.replace("_", " ")
        if isinstance(value, dict) and set(value) == {"bounds", "counts", "sum"}:
            yield f"{indent}{label}"
            yield from _histogram(value, f"{indent}  ")
        elif isinstance(value, dict):
            yield f"{indent}{label}"
            yield from lines(value, f"{indent}  ")
        elif isinstance(value, list) and _nested(value):
            yield f"{indent}{label}"
            yield from _table(value, f"{indent}  ")
        else:
            yield f"{indent}{label:<{width}}  {_shown(key, value)}"


def duration(seconds: float) -> str:
    """Write a duration the way people say it."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = int(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 2880 else f"{minutes // 1440} days"


def megabytes(size: int) -> str:
    """Write a size in memory, in units of a million bytes."""
    return f"{size / 1e6:.0f} MB"


def _nested(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return isinstance(value, dict)


def _shown(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key in _DURATIONS:
        return duration(value)
    if isinstance(value, int) and key in _BYTES:
        return megabytes(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        words = [_shown("", item) for item in value]
        words = [f'"{word}"' if "," in word else word for word in words]
        if len(words) > _LONG_LIST:
            return f"{len(words)}: {', '.join(words[:_SHOWN])}, … (--json has all)"
        return ", ".join(words)
    return str(value)


def _table(rows: list[object], indent: str) -> Iterator[str]:
    maps = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(key for row in maps for key in row))
    cells = [[_shown(key, row.get(key, "")) for key in columns] for row in maps]
    cells.insert(0, [str(key).replace("_", " ") for key in columns])
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{indent}{line}".rstrip()


def _histogram(fields: dict[str, object], indent: str) -> Iterator[str]:
    bounds, counts, total = fields["bounds"], fields["counts"], fields["sum"]
    if not isinstance(bounds, list) or not isinstance(counts, list):
        return
    names = [*(f"under {duration(bound)}" for bound in bounds), "longer"]
    number = sum(counts)
    if number and isinstance(total, int | float):
        yield f"{indent}mean {duration(total / number)} of {number}"
    width = max(map(len, names), default=0)
    for name, count in zip(names, counts, strict=False):
        if count:
            yield f"{indent}{name:<{width}}  {count}"
