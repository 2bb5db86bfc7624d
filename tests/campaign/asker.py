"""A client process of the campaign: `asker.py SOCKET TIMEOUT <paths >answers`.

Asks for each path, one a line, as they come, by the client library, and writes one JSON object a
line for each: {path, row} or {path, code, message}. Timeout: seconds, or 0 for the daemon's own.
"""

from __future__ import annotations

import json
import sys

from swiprctl.client import Client
from swiprctl.errors import SwiprError
from swiprctl.names import Names


def main() -> None:
    """Ask, in the order given."""
    socket, timeout = sys.argv[1], float(sys.argv[2])
    with Client(socket, timeout=timeout or None) as client:
        for path, answer in client.predict_many(Names("-", b"\n")):
            line: dict[str, object] = {"path": path}
            if isinstance(answer, SwiprError):
                line |= {"code": answer.code or type(answer).__name__, "message": str(answer)}
            else:
                line |= {"row": answer.probabilities}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
