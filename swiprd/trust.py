"""`swiprd trust`: show the program in a model's folder, and note that it may run as this user.

Runs nothing of it. Standard library only: no torch.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from swiprctl.report import lines
from swiprd.folder import consent, trusted_programs
from swiprd.folder.spec import load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.folder.trusted_programs import NoRecord
from swiprd.system import console

_EX_CANTCREAT = 73
_EX_CONFIG = 78
_WHO = "swiprd trust"


def run(folder: Path) -> int:
    """Show and record; return the exit status.

    0 if the program is trusted now, or there is none; 78 if there is something wrong with the
    folder, 73 if it cannot be recorded; 74 if standard output takes nothing, and 141 if nobody
    reads it: what has not been shown is not trusted.
    """
    try:
        return _trust(folder)
    except SpecError as error:
        return _complain(str(error), _EX_CONFIG)
    except NoRecord as error:
        return _complain(str(error), _EX_CANTCREAT)
    except console.OutputFailed as error:
        return error.status if error.unread else _complain(str(error), error.status)


def _trust(folder: Path) -> int:
    spec = load_spec(folder)
    if not spec.carries_code:
        console.put(f"{folder}: {spec.architecture} carries no code: nothing is to be trusted")
        return 0
    program = spec.weights.resolve()
    opened, code = consent.copy(program, spec.architecture)
    opened.close()
    shown: dict[str, object] = {
        "model": spec.name,
        "program": str(program),
        "kind": code.kind,
        "size": f"{code.size} bytes",
        "owner": _owner(program),
        "sha256": code.sha256,
    }
    for line in lines(shown):
        console.put(line)
    file = trusted_programs.record(code, program)
    console.put(
        f"\nThese bytes may now run with the rights of uid {os.geteuid()}, wherever they lie.\n"
        f"To trust them no more, take their line out of {file}"
    )
    return 0


def _complain(message: str, status: int) -> int:
    console.complain(_WHO, message)
    return status


def _owner(file: Path) -> str:
    try:
        uid = file.stat().st_uid
    except OSError:
        return ""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
