"""The shipped model: that it loads, answers its canary, and tells sharp from blurred."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swiprd.bundle import Bundle, digest_weights, load_bundle
from swiprd.images import decode, preprocess
from swiprd.model import LoadedModel, import_torchvision, load_model, probabilities
from swiprd.models.focus import camera, recipe, scenes
from swiprd.models.focus.evaluate import (
    TEST,
    Judged,
    area_under_curve,
    areas,
    balanced_accuracy,
    blurs,
    find_photographs,
    judge_photograph,
)

pytestmark = pytest.mark.timeout(120)

VERSIONS = 1 + len(list(blurs()))  # Of one view: as it is, and blurred in every way.


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(recipe.HERE)


@pytest.fixture(scope="module")
def loaded(bundle: Bundle) -> Iterator[LoadedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    yield load_model(bundle)
    torch.set_num_threads(threads)


def _photographs() -> dict[str, Path]:
    """Those test photographs that scikit-image ships."""
    found = find_photographs(TEST, None)
    return {name: path for name, path in found.items() if "skimage" in path.parts}


@pytest.mark.timeout(120)
def test_weights_fit_the_named_architecture_strictly(bundle: Bundle) -> None:
    network = import_torchvision().models.get_model(bundle.architecture, num_classes=2)
    state = torch.load(bundle.weights, weights_only=True)
    network.load_state_dict(state, strict=True)
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    assert floats == {torch.float32}
    assert bundle.weights.stat().st_size < 3e6


@pytest.mark.timeout(120)
def test_description_is_that_of_the_files(bundle: Bundle) -> None:
    assert bundle.sha256 == digest_weights(bundle)
    assert bundle.labels == recipe.LABELS == ("sharp", "blurred")
    assert bundle.preprocess == recipe.PREPROCESS
    assert bundle.canary is not None
    assert 20_000 < bundle.canary.image.stat().st_size < 60_000


@pytest.mark.timeout(120)
def test_canary_row(loaded: LoadedModel) -> None:
    canary = loaded.bundle.canary
    assert canary is not None
    assert canary.probabilities is not None
    crops = decode(canary.image.read_bytes(), loaded.bundle.preprocess)
    row = probabilities(loaded, crops[None])[0]
    assert row.tolist() == pytest.approx(canary.probabilities, abs=1e-4)
    assert row[0] > 0.9


@pytest.mark.timeout(120)
def test_generated_photographs_of_unseen_scenes(loaded: LoadedModel) -> None:
    rng = np.random.default_rng(20_001)
    textures = scenes.make_textures(rng, 12)
    unseen = [scenes.draw_scene(rng, textures) for _ in range(16)]
    scores: dict[int, list[float]] = {camera.SHARP: [], camera.BLURRED: []}
    for index in range(80):
        label = index % 2
        taken = camera.photograph(rng, unseen, label, 320)
        crops = preprocess(Image.fromarray(taken), loaded.bundle.preprocess)
        scores[label].append(float(probabilities(loaded, crops[None])[0, 0]))
    assert area_under_curve(scores[camera.SHARP], scores[camera.BLURRED]) > 0.93


@pytest.mark.timeout(120)
def test_photographs_are_drawn_from_the_seed_alone() -> None:
    textures = scenes.make_textures(np.random.default_rng(1), 3)
    for label in (camera.SHARP, camera.BLURRED):
        first, second = (
            camera.photograph(
                np.random.default_rng([2, label]),
                [scenes.draw_scene(np.random.default_rng(3), textures)],
                label,
                320,
            )
            for _ in range(2)
        )
        assert first.shape == (320, 320, 3)
        assert np.array_equal(first, second)


@pytest.fixture(scope="module")
def judged(loaded: LoadedModel) -> list[Judged]:
    """Whole test photographs in poor light, where the yardstick fails; as they are, and blurred."""
    return [
        one
        for path in _photographs().values()
        for one in islice(judge_photograph(loaded, path, "poor light"), VERSIONS)
    ]


@pytest.mark.timeout(120)
def test_real_photographs_in_poor_light(judged: list[Judged]) -> None:
    assert len(judged) >= 5 * VERSIONS
    model, laplacian = areas(judged)
    assert model > 0.95
    assert model > laplacian
    assert balanced_accuracy(judged) > 0.85


@pytest.mark.timeout(120)
@pytest.mark.parametrize("blur", ["gaussian", "disk", "motion"])
def test_ahead_of_the_variance_of_the_laplacian(judged: list[Judged], blur: str) -> None:
    model, laplacian = areas(judged, blur)
    assert model > laplacian


@pytest.mark.timeout(120)
def test_real_photographs_as_they_come(loaded: LoadedModel) -> None:
    paths = _photographs()
    some = [paths[name] for name in ("astronaut.png", "coins.png", "rocket.jpg")]
    clean = [
        one for path in some for one in islice(judge_photograph(loaded, path, "clean"), VERSIONS)
    ]
    assert areas(clean)[0] > 0.97


@pytest.mark.timeout(120)
def test_retraining_writes_a_whole_model(tmp_path: Path) -> None:
    for needed in ("tqdm", "matplotlib"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    from swiprd.models.focus.train import main

    small = "--steps 2 --scenes 2 --batch 4 --held-out 4 --workers 0 --threads 1"
    main([*small.split(), "--out", str(tmp_path)])
    made = load_bundle(tmp_path)
    assert made.sha256 == digest_weights(made)
    assert made.preprocess == recipe.PREPROCESS
    assert made.canary is not None
    assert made.canary.probabilities is not None
    loaded = load_model(made)
    crops = decode(made.canary.image.read_bytes(), made.preprocess)
    row = probabilities(loaded, crops[None])[0].tolist()
    assert row == pytest.approx(made.canary.probabilities, abs=1e-4)
    assert (tmp_path / "training.png").stat().st_size < 100_000
