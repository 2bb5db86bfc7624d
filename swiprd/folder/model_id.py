"""What a model is called by: its name and a digest of what decides its answers.

Standard library only. Reads the weights, where model.toml records no digest of them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError


def identify(spec: ModelSpec) -> str:
    """Return the model's id: its name, "@", and 12 hexadecimal digits of what decides its answers.

    Those are the first of `digest_answers`, with the SHA-256 of the weights that model.toml
    records, which is believed, or else the file's own (about a second per gigabyte).

    Raises:
        SpecError: the weights have gone since `load_spec`.
    """
    return f"{spec.name}@{digest_answers(spec, spec.sha256 or digest_weights(spec))[:12]}"


def digest_answers(spec: ModelSpec, weights: str) -> str:
    """Return the SHA-256, in hexadecimal, of what decides a model's answers.

    That is what model.toml says of the answers (not how they are served or checked), the labels,
    and the weights, of which `weights` is the SHA-256.
    """
    decides: dict[str, object] = {
        "architecture": spec.architecture,
        "head": spec.head,
        "match": spec.match,
        "weights": weights,
        "labels": spec.labels,
        "activation": spec.activation,
        "thresholds": spec.thresholds,
        "preprocess": asdict(spec.preprocess),
    }
    if spec.output is not None:  # otherwise not in it: ids of before are to stay as they are
        decides["output"] = spec.output
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def digest_weights(spec: ModelSpec) -> str:
    """Return the SHA-256 of the weights file as it is now, in hexadecimal.

    Raises:
        SpecError: the file cannot be read.
    """
    try:
        with spec.weights.open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError as error:
        found = error.strerror or str(error)
        raise SpecError(spec.weights, "", "a readable file", found) from None
