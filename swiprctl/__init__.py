"""swipr's client: ask the local image classifier for probabilities.

    from swiprctl import Client

    with Client() as client:
        print(client.predict("img.jpg").probabilities)

Nothing here has compiled code beyond the standard library; msgpack may be its pure-Python form.
The names below are imported when they are first used: the daemon, which shares `errors` and
`protocol` with the client, never loads the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.client import Client
    from swiprctl.errors import SwiprError
    from swiprctl.rows import Prediction
    from swiprctl.version import __version__

__all__ = ["Client", "Prediction", "SwiprError", "__version__"]

_HOME = {
    "Client": "swiprctl.client",
    "Prediction": "swiprctl.rows",
    "SwiprError": "swiprctl.errors",
    "__version__": "swiprctl.version",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
