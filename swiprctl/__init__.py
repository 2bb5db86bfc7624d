"""swipr's client: ask the local image classifier for probabilities.

    from swiprctl import Client

    with Client() as client:
        prediction = client.predict("img.jpg")
        print(prediction.top(1), prediction.as_dict())

An image is a path, bytes, a file, a Pillow image or a numpy array; `predict_many` streams. Every
error is a SwiprError; one that is about a file is an OSError, and one about time a TimeoutError.

Nothing here has compiled code beyond the standard library; msgpack may be its pure-Python form.
The names below are imported when they are first used: the daemon, which shares `errors` and
`protocol` with the client, never loads the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.client import Client
    from swiprctl.errors import (
        BadImage,
        BadRequest,
        CannotOpen,
        DeadlineExceeded,
        Forbidden,
        LoadingFailed,
        NoDaemon,
        Overloaded,
        ShuttingDown,
        SwiprError,
        TooLarge,
        TryLater,
        UsageError,
        WorkerCrashed,
    )
    from swiprctl.rows import Prediction
    from swiprctl.version import __version__

__all__ = [
    "BadImage",
    "BadRequest",
    "CannotOpen",
    "Client",
    "DeadlineExceeded",
    "Forbidden",
    "LoadingFailed",
    "NoDaemon",
    "Overloaded",
    "Prediction",
    "ShuttingDown",
    "SwiprError",
    "TooLarge",
    "TryLater",
    "UsageError",
    "WorkerCrashed",
    "__version__",
]

_HOME = {"Client": "client", "Prediction": "rows", "__version__": "version"}  # others: errors


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    # For help() and completion, which look at no name that is not here.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
