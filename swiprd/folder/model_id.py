"""What a model is called by: its name and a digest of what decides its answers.

Standard library only. Reads the weights, where model.toml records no digest of them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from swiprd.folder.spec import Bundle
from swiprd.folder.toml_table import BundleError


def identify(bundle: Bundle) -> str:
    """Return the model's id: its name, "@", and 12 hexadecimal digits of what decides its answers.

    Those digest what model.toml says of the answers (not how they are served or checked), the
    labels, and the SHA-256 of the weights: the recorded one, which is believed, or else the
    file's own (about a second per gigabyte).

    Raises:
        BundleError: the weights have gone since `load_bundle`.
    """
    decides = {
        "architecture": bundle.architecture,
        "head": bundle.head,
        "match": bundle.match,
        "weights": bundle.sha256 or digest_weights(bundle),
        "labels": bundle.labels,
        "activation": bundle.activation,
        "thresholds": bundle.thresholds,
        "preprocess": asdict(bundle.preprocess),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    return f"{bundle.name}@{digest.hexdigest()[:12]}"


def digest_weights(bundle: Bundle) -> str:
    """Return the SHA-256 of the weights file as it is now, in hexadecimal.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        with bundle.weights.open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError as error:
        found = error.strerror or str(error)
        raise BundleError(bundle.weights, "", "a readable file", found) from None
