"""What the focus model is, in one place: its network, its preprocessing and the files that say so.

Preprocessing itself is the daemon's own code: what is scored here is what is served.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn

from swiprd.folder.spec import Preprocess
from swiprd.inference.decode import decode
from swiprd.inference.torchvision_import import import_torchvision

HERE = Path(__file__).parents[2] / "models" / "focus"
"""The folder that is shipped."""
LABELS = ("sharp", "blurred")
# 1.4 MB of weights and 14 million multiplications a crop. Larger ones (mobilenet_v3_small,
# mnasnet0_5) are 2 to 4 times the size, and slower to train.
ARCHITECTURE = "shufflenet_v2_x0_5"

PREPROCESS = Preprocess(
    # Sharpness is a matter of pixels: crops are judged at this scale, never the whole picture
    # shrunk to a crop.
    resize=1024,
    edge="long",
    enlarge=False,
    crop=128,
    crops="grid",
    # Square, so that portraits and landscapes are covered alike: three quarters of either.
    grid=(6, 6),
    # A few crops in focus make a sharp photograph, whatever the others show.
    pool="logsumexp",
    draft=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)


def build_network() -> nn.Module:
    """Return the network, untrained."""
    models = import_torchvision().models
    network: nn.Module = models.get_model(ARCHITECTURE, weights=None, num_classes=len(LABELS))
    return network


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a plain state_dict, in the memory layout that a new network has."""
    state = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    torch.save(state, path)


def describe(folder: Path) -> None:
    """Write labels.txt, and model.toml for the weights and the canary that lie in a folder."""
    weights = (folder / "weights.pth").read_bytes()
    network = build_network()
    network.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    with torch.inference_mode():
        crops = decode((folder / "canary.jpg").read_bytes(), PREPROCESS)
        row = network.eval()(torch.from_numpy(crops)).logsumexp(dim=0).softmax(dim=0)
    answer = ", ".join(f"{value:.6f}" for value in row.tolist())
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (folder / "model.toml").write_text(
        f"""\
# Is a photo sharp or blurred? Written by train.py; MODEL_CARD.md says what it is good for.
name = "focus"
architecture = "{ARCHITECTURE}"
weights = "weights.pth"
sha256 = "{hashlib.sha256(weights).hexdigest()}"
labels = "labels.txt"
activation = "softmax"

[preprocess]
# Crops at the scale of {PREPROCESS.resize} pixels on the long side, not the whole shrunk.
resize = {PREPROCESS.resize}
edge = "{PREPROCESS.edge}"
enlarge = {str(PREPROCESS.enlarge).lower()}
crop = {PREPROCESS.crop}
crops = "{PREPROCESS.crops}"
grid = {list(PREPROCESS.grid or ())}
pool = "{PREPROCESS.pool}"
interpolation = "{PREPROCESS.interpolation}"
# Large JPEGs are decoded at a half, a quarter or an eighth: fast, and not exact.
draft = {str(PREPROCESS.draft).lower()}
mean = {list(PREPROCESS.mean)}
std = {list(PREPROCESS.std)}

[canary]
image = "canary.jpg"
probabilities = [{answer}]
"""
    )
