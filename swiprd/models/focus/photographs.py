"""Which real photographs the focus model is scored on, and where they are on this host.

Nothing here is trained on. They were chosen by eye, before any was scored: camera photographs with
something in focus at a long side of 1,024 pixels. Those of one source are all in one group.
"""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

INSTALLED = ("skimage", "matplotlib", "sklearn", "ultralytics", "imgaug")
"""Python packages that bring photographs; what is installed of them is found without a folder."""

SCIKIT_IMAGE = tuple(
    f"skimage/data/{name}"
    for name in (
        "camera.png",
        "coffee.png",
        "brick.png",
        "motorcycle_left.png",
        "hubble_deep_field.jpg",
        "astronaut.png",
        "chelsea.png",
        "rocket.jpg",
        "coins.png",
        "grass.png",
        "gravel.png",
        "page.png",
        "ihc.png",
    )
)
SCIKIT_IMAGE_SOFT = tuple(
    f"skimage/data/{name}"
    for name in ("moon.png", "retina.jpg", "clock_motion.png", "cell.png", "text.png")
)
"""The rest of its photographs, soft as they come: in neither group."""

TUNE = (
    *SCIKIT_IMAGE,
    "mpl-data/sample_data/grace_hopper.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "ultralytics/assets/bus.jpg",
    "ultralytics/assets/zidane.jpg",
    "imgaug/quokka.jpg",
    *(
        f"backgrounds/{name}.jpg"  # Debian's lomiri-wallpapers-16.04
        for name in (
            "Bridge_by_Sander_Klootwijk",
            "Dragonfly_by_Bolly",
            "Picture_0B_by_freespace",
            "Picture_1A_by_freespace",
            "aitzgorri_by_Aitzol_Berasategi",
            "free_by_Peter_Nerlich",
            "greentock_by_Peter_Nerlich",
            "life_by_Aitzol_Berasategi",
            "picosdeeuropa_by_Aitzol_Berasategi",
            "seeding_by_Clements_Engelhardt",
            "sunset_by_Aitzol_Berasategi",
        )
    ),
    *(
        f"kphotoalbum/demo/{name}.jpg"
        for name in (
            *("bar55", "bar55_2", "cold_water", "donna", "donna_2", "grand_canyon_1"),
            *("grand_canyon_2", "grand_canyon_3", "jesper_2", "new_wave_1", "pool", "pool_2"),
            *("qt-logo", "skagen", "skagen_2", "snow", "spiff", "sunset", "wayne"),
        )
    ),
)
"""What choices were made by: the blurs and conditions to train on, and how crops are joined."""

VALIDATION = (
    *(
        f"palapeli/collection/{name}.jpg"
        for name in (
            "castle-maintenon",
            "cincinnati-bridge",
            "citrus-fruits",
            "european-honey-bee",
            "panther-chameleon-female",
        )
    ),
    *(
        f"mate/nature/{name}.jpg"
        for name in (
            *("Aqua", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops"),
            *("TwoWings", "Wood", "YellowFlower"),
        )
    ),
    *(
        f"wallpapers/{name}/contents/images/2560x1600.jpg"
        for name in (
            *("BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "FallenLeaf", "Grey"),
            *("Kite", "OneStandsOut", "Path", "summer_1am"),
        )
    ),
    "alphamat/input_images/plant.jpg",
    *(
        f"examples/data/{name}"
        for name in (
            *("aero1.jpg", "aero3.jpg", "aloeL.jpg", "baboon.jpg", "board.jpg", "box_in_scene.png"),
            *("building.jpg", "chicky_512.png", "fruits.jpg", "graf1.png", "home.jpg", "left.jpg"),
            *("left01.jpg", "leuvenA.jpg", "messi5.jpg", "rubberwhale1.png", "squirrel_cls.jpg"),
        )
    ),
    *(f"examples/text/scenetext0{number}.jpg" for number in range(1, 7)),
    *(f"examples/text/scenetext_segmented_word0{number}.jpg" for number in range(1, 6)),
    "jxl/flower/flower.png",
)
"""Never looked at, but to choose them, before the weights were final. By sources: palapeli-data,
mate-backgrounds, plasma-workspace-wallpapers, opencv-doc, libjxl-testdata."""

BLURRED = (
    "skimage/data/clock_motion.png",
    "mate/nature/Storm.jpg",
    "examples/data/licenseplate_motion.jpg",
    "examples/data/text_defocus.jpg",
    "examples/data/text_motion.jpg",
    "examples/data/basketball1.png",
)
"""Blurred when they were taken, not by a kernel; from the same sources."""

_LONGEST = max(len(Path(name).parts) for name in (*TUNE, *VALIDATION, *BLURRED))


def find_photographs(names: Iterable[str], folder: Path | None) -> dict[str, Path]:
    """Return those of the named photographs that are on this host.

    names: the ends of their paths. folder: where packages were unpacked, looked through whole.
    """
    found: dict[str, Path] = {}
    if folder is not None:
        for path in sorted(folder.rglob("*")):
            for length in range(1, _LONGEST + 1):
                found.setdefault("/".join(path.parts[-length:]), path)
    names = tuple(names)
    for package in INSTALLED:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            home = Path(spec.origin).parent
            for name in names:
                for place in (home.parent / name, home / name):
                    if place.exists():
                        found[name] = place
    return {name: found[name] for name in names if name in found}
