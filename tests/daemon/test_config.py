"""config.py: where a setting may come from, which wins, and what is said of one that is no good."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd import config
from swiprd.config import ConfigError, Settings, add_options, load_settings
from swiprd.system.image_formats import FORMATS

pytestmark = pytest.mark.timeout(30)

Load = Callable[..., Settings]
NAMES = [field.name for field in dataclasses.fields(Settings)]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this host's own."""
    monkeypatch.setattr(config, "FOLDER", tmp_path / "etc")
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "etc/swiprd.toml")
    monkeypatch.setattr(config, "MODELS", (tmp_path / "etc/models", tmp_path / "lib/models"))
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings as a command line and a file's text give them."""

    def load(*arguments: str, file: str | bytes | None = None, managed: bool = False) -> Settings:
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_options(parser)
        if file is not None:
            path = tmp_path / "swiprd.toml"
            path.write_bytes(file if isinstance(file, bytes) else file.encode())
            arguments = ("--config", str(path), *arguments)
        return load_settings(parser.parse_args(arguments), managed=managed)

    return load


class TestSources:
    def test_every_default_works(self, load: Load, tmp_path: Path) -> None:
        settings = load()
        assert settings == Settings(cache=tmp_path / "home/.cache/swipr")
        assert settings.timeout == DEFAULT_TIMEOUT == 10
        assert (settings.queue, settings.connections) == (128, 256)
        assert (settings.first_byte, settings.stall, settings.slow_reader) == (5, 5, 5)
        assert (settings.max_image, settings.max_pixels) == (64 << 20, 178_956_970)
        assert settings.model.name == "focus"

    def test_the_file(self, load: Load) -> None:
        settings = load(
            file="""
            model = "/srv/chexnet"
            device = "cpu"
            timeout = 3  # a whole number is a number
            idle_timeout = 0.5
            queue = 7
            workers = 2
            cache = "/var/tmp/c"
            """
        )
        assert settings == Settings(
            model=Path("/srv/chexnet"),
            device="cpu",
            timeout=3.0,
            idle_timeout=0.5,
            queue=7,
            workers=2,
            cache=Path("/var/tmp/c"),
        )
        assert isinstance(settings.timeout, float)

    def test_the_command_line(self, load: Load) -> None:
        settings = load("--model=/srv/m", "--max-image=10", "--first-byte", "2.5", "--threads=3")
        assert settings.model == Path("/srv/m")
        assert (settings.max_image, settings.first_byte, settings.threads) == (10, 2.5, 3)

    def test_the_command_line_wins_over_the_file_and_that_over_defaults(self, load: Load) -> None:
        settings = load("--queue=5", file="queue = 7\nconnections = 9\n")
        assert (settings.queue, settings.connections, settings.stall) == (5, 9, 5.0)

    def test_the_default_file_is_read_where_there_is_one(self, load: Load) -> None:
        config.DEFAULT_FILE.parent.mkdir()
        config.DEFAULT_FILE.write_text("queue = 11\n")
        assert load().queue == 11
        assert load(file="").queue == 128, "another file is read instead of it, not with it"

    def test_the_file_of_a_command_line_must_be_there(self, load: Load, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nosuch\.toml: No such file or directory"):
            load("--config", str(tmp_path / "nosuch.toml"))

    def test_a_list(self, load: Load) -> None:
        assert load().formats == FORMATS
        assert load(file='formats = ["png", "jpeg", "png"]').formats == ("jpeg", "png")
        assert load("--formats=heic,jpeg", file='formats = ["png"]').formats == ("jpeg", "heic")

    def test_settings_are_frozen(self, load: Load) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            load().queue = 1  # type: ignore[misc]


class TestCache:
    """From the weakest to the strongest."""

    def test_the_home(self, load: Load, tmp_path: Path) -> None:
        assert load().cache == tmp_path / "home/.cache/swipr"

    def test_the_users_cache(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/x")
        assert load().cache == Path("/x/swipr")

    def test_systemds_folder(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/x")
        monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/swipr")
        assert load().cache == Path("/var/cache/swipr")

    def test_systemds_first_of_several(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/a:/var/cache/b")
        assert load().cache == Path("/var/cache/a")

    def test_the_file_and_the_command_line(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/swipr")
        assert load(file='cache = "/f"').cache == Path("/f")
        assert load("--cache=/o", file='cache = "/f"').cache == Path("/o")

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes another uid, hence root")
    def test_a_uid_without_a_home_has_one_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOME")
        nobody_knows = 60_999
        pid = os.fork()
        if pid == 0:
            try:
                os.setresuid(nobody_knows, nobody_knows, nobody_knows)
                os._exit(0 if config._cache_home() == Path("/var/cache") else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class TestInstance:
    """`swiprd@NAME.service`: a file and a model of its own."""

    @pytest.fixture(autouse=True)
    def _model(self, tmp_path: Path) -> None:
        (tmp_path / "lib/models/chexnet").mkdir(parents=True)

    def test_it_has_a_model_and_leaves_when_idle(self, load: Load, tmp_path: Path) -> None:
        settings = load("--instance=chexnet")
        assert settings.model == tmp_path / "lib/models/chexnet"
        assert settings.idle_timeout == 300

    def test_the_administrators_model_comes_first(self, load: Load, tmp_path: Path) -> None:
        (tmp_path / "etc/models/chexnet").mkdir(parents=True)
        assert load("--instance=chexnet").model == tmp_path / "etc/models/chexnet"

    def test_it_reads_its_own_file_only(self, load: Load, tmp_path: Path) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/swiprd.toml").write_text("queue = 3\nconnections = 3\n")
        own = tmp_path / "etc/swiprd@chexnet.toml"
        own.write_text("queue = 5\nidle_timeout = 0\nmodel = '/m'\n")
        settings = load("--instance=chexnet")
        assert (settings.queue, settings.connections, settings.idle_timeout) == (5, 256, 0)
        assert settings.model == Path("/m")
        own.write_text("queue = 0\n")
        with pytest.raises(ConfigError, match=r"swiprd@chexnet\.toml: queue: expected at least 1"):
            load("--instance=chexnet")

    def test_one_without_a_model_is_told_where_it_belongs(self, load: Load, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load("--instance=nosuch")
        for folder in ("etc/models/nosuch", "lib/models/nosuch"):
            assert str(tmp_path / folder) in str(caught.value)

    @pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b", "x" * 65, "a\n"])
    def test_a_name_that_is_none(self, load: Load, name: str) -> None:
        with pytest.raises(argparse.ArgumentError, match="argument --instance: expected up to 64"):
            load(f"--instance={name}")


class TestManaged:
    """Under a service manager, which counts starts."""

    @pytest.mark.parametrize(("told", "found"), [(0, 0), (0.5, 60), (59, 60), (61, 61)])
    def test_it_does_not_leave_at_once(self, load: Load, told: float, found: float) -> None:
        assert load(f"--idle-timeout={told}", managed=True).idle_timeout == found
        assert load(f"--idle-timeout={told}").idle_timeout == told


@pytest.mark.parametrize(
    ("options", "longest"),
    [
        ([], 10.0),
        (["--timeout=20"], 20.0),
        (["--max-timeout=60"], 60.0),
        (["--timeout=20", "--max-timeout=5"], 5.0),
    ],
)
def test_no_request_gets_longer_than_the_daemon_itself_would_give_it(
    load: Load, options: list[str], longest: float
) -> None:
    assert load(*options).ceiling == longest


class TestErrors:
    """Each names the file, the key, what was expected and what was found."""

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("timeout = 0", "timeout: expected at least 0.001, found 0"),
            ("timeout = -1.5", "timeout: expected at least 0.001, found -1.5"),
            ("timeout = nan", "timeout: expected at least 0.001, found nan"),
            ("timeout = inf", "timeout: expected at most 3600, found inf"),
            ("timeout = 3601", "timeout: expected at most 3600, found 3601"),
            ('timeout = "10"', "timeout: expected a number, found '10'"),
            ("timeout = true", "timeout: expected a number, found True"),
            ("queue = 0", "queue: expected at least 1, found 0"),
            ("queue = 1.5", "queue: expected a whole number, found 1.5"),
            ("queue = true", "queue: expected a whole number, found True"),
            ("queue = []", "queue: expected a whole number, found []"),
            ("connections = 0", "connections: expected at least 1, found 0"),
            ("first_byte = 0", "first_byte: expected at least 0.001, found 0"),
            ("stall = inf", "stall: expected at most 1e+12, found inf"),
            ("slow_reader = 0", "slow_reader: expected at least 0.001, found 0"),
            ("max_image = 0", "max_image: expected at least 1, found 0"),
            ("max_inline = 0", "max_inline: expected at least 1, found 0"),
            ("max_pixels = 0", "max_pixels: expected at least 1, found 0"),
            ("idle_timeout = -1", "idle_timeout: expected at least 0, found -1"),
            ("load_timeout = 0", "load_timeout: expected at least 0.001, found 0"),
            ("workers = 0", "workers: expected at least 1, found 0"),
            ("threads = 257", "threads: expected at most 256, found 257"),
            ("batch = 0", "batch: expected at least 1, found 0"),
            ("model = 5", "model: expected a path, found 5"),
            ('model = "a\\u0000b"', r"model: expected a path, found 'a\x00b'"),
            ("cache = false", "cache: expected a path, found False"),
            ("device = 0", "device: expected a name, found 0"),
            ('device = "gpu"', "device: expected one of auto, cpu, cuda, found 'gpu'"),
            ('formats = ["jpg"]', f"formats: expected some of {', '.join(FORMATS)}, found 'jpg'"),
            ("formats = [5]", f"formats: expected some of {', '.join(FORMATS)}, found 5"),
            ("formats = [[]]", f"formats: expected some of {', '.join(FORMATS)}, found []"),
            ("formats = 5", f"formats: expected some of {', '.join(FORMATS)}, found 5"),
            (
                'formats = "png"',
                f"formats: expected a list of some of {', '.join(FORMATS)}, found 'png'",
            ),
            (
                "formats = []",
                f"formats: expected a list of some of {', '.join(FORMATS)}, found []",
            ),
        ],
    )
    def test_a_bad_value(self, load: Load, tmp_path: Path, text: str, error: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load(file=text)
        assert str(caught.value) == f"{tmp_path}/swiprd.toml: {error}"

    def test_an_unknown_key_is_told_which_there_are(self, load: Load, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load(file="que = 1")
        text = str(caught.value)
        assert text.startswith(f"{tmp_path}/swiprd.toml: que: no such setting; there are model, ")
        assert all(name in text for name in NAMES)

    def test_a_table_is_no_setting(self, load: Load) -> None:
        with pytest.raises(ConfigError, match="swiprd: no such setting"):
            load(file="[swiprd]\nqueue = 1\n")

    @pytest.mark.parametrize(
        "text",
        ["queue =", "queue = 1\nqueue = 2", "\x00", b"\xff\xfe", "queue = " + "9" * 5000],
        ids=["no value", "twice", "NUL", "not UTF-8", "5000 digits"],
    )
    def test_what_is_not_toml(self, load: Load, tmp_path: Path, text: str | bytes) -> None:
        with pytest.raises(ConfigError) as caught:
            load(file=text)
        assert str(caught.value).startswith(f"{tmp_path}/swiprd.toml: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("given", [True, False], ids=["named", "default"])
    def test_a_file_that_cannot_be_read(
        self, load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: bool
    ) -> None:
        monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path)
        with pytest.raises(ConfigError) as caught:
            load(*(("--config", str(tmp_path)) if given else ()))
        assert str(caught.value) == f"{tmp_path}: Is a directory"

    @pytest.mark.parametrize(
        ("argument", "error"),
        [
            ("--queue=many", "argument --queue: expected a whole number, found 'many'"),
            ("--queue=1.5", "argument --queue: expected a whole number, found '1.5'"),
            ("--queue=0", "argument --queue: expected at least 1, found 0"),
            ("--timeout=soon", "argument --timeout: expected a number, found 'soon'"),
            ("--timeout=inf", "argument --timeout: expected at most 3600, found inf"),
            ("--max-pixels=-1", "argument --max-pixels: expected at least 1, found -1"),
            ("--device=tpu", "argument --device: expected one of auto, cpu, cuda, found 'tpu'"),
            (
                "--formats=png,",
                f"argument --formats: expected some of {', '.join(FORMATS)}, found ''",
            ),
        ],
    )
    def test_an_option(self, load: Load, argument: str, error: str) -> None:
        with pytest.raises(argparse.ArgumentError) as caught:
            load(argument)
        assert str(caught.value) == error


@pytest.fixture(scope="module")
def shown() -> str:
    """What --help prints on a wide terminal."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "swiprd", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env={**os.environ, "COLUMNS": "1000"},
    ).stdout


def test_the_help_lists_every_setting(shown: str) -> None:
    assert "--config FILE" in shown
    for name in NAMES:
        assert f"\n  --{name.replace('_', '-')} " in shown


def test_the_help_tells_the_true_defaults(shown: str) -> None:
    texts = dict(option.split(None, 1) for option in shown.split("\n  --")[1:])
    for field in dataclasses.fields(Settings):
        text = texts[field.name.replace("_", "-")].strip()
        if field.name in ("max_image", "max_inline", "max_growth"):
            assert isinstance(field.default, int)
            assert text.endswith(f"(default: {field.default >> 20} MiB)")
        elif isinstance(field.default, int | float):
            assert f"(default: {field.default:.0f}" in text
        else:
            assert "(default: " in text
