"""swipr's client: ask the local image classifier for probabilities.

    from swiprctl import Client

    with Client() as client:
        print(client.predict("img.jpg").probabilities)

Nothing here has compiled code beyond the standard library; msgpack may be its pure-Python form.
"""

from swiprctl.client import Client, Prediction
from swiprctl.errors import SwiprError
from swiprctl.version import __version__

__all__ = ["Client", "Prediction", "SwiprError", "__version__"]
