"""`make bench`: what swipr costs over the bare model, on this machine, in one run.

Everything that is compared runs in turns within the run, and medians are quoted: the speed of a
machine drifts, a ratio of neighbours less so. Nothing here passes or fails. Leave the machine
alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from daemonprocess import DaemonProcess, wait_until
from modelfolders import compile_into, make_folder, photo

CLIENT = Path(sys.prefix) / "client" / "bin"
"""Where `make bench` installs the client as a user would: not editable, and compiled."""

ARCHITECTURES = ("resnext50_32x4d", "mobilenet_v3_small")
IN_FLIGHT = 8
BATCHES = (1, 2, 4, 8)
SIZE = (1024, 768)  # pixels of the generated JPEGs

RUNNER = """
import json, os, sys, time
import numpy as np
from pathlib import Path
folder, engine, threads, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from swiprd.system import imagefile
from swiprd.inference import decode
from swiprd.folder.spec import load_spec
if engine == "torch":
    from swiprd.inference.model import load_model
    loaded = load_model(load_spec(folder))
else:
    from swiprd.inference.onnx_model import load_onnx
    loaded = load_onnx(load_spec(folder), folder)
loaded.set_threads(threads)
files = [os.open(path, os.O_RDONLY) for path in sys.argv[5:]]

def once(k):
    crops = [
        decode.decode(imagefile.read_image_bytes(files[(k + i) % len(files)], 1 << 26),
                      loaded.spec.preprocess)
        for i in range(batch)
    ]
    return loaded.probabilities(np.stack(crops)).tolist()

for k in range(3):
    once(k)
print("ready", flush=True)
for line in sys.stdin:
    seconds = float(line)
    until = time.perf_counter() + seconds
    times = []
    while (begun := time.perf_counter()) < until:
        once(len(times))
        times.append(time.perf_counter() - begun)
    print(json.dumps(times), flush=True)
"""


class InProcess:
    """The bare loop in one or more processes: same decode, preprocess and forward, no daemon."""

    def __init__(
        self, model: Path, photos: list[Path], engine: str, processes: int, threads: int, batch: int
    ) -> None:
        self.name = f"{engine} {processes} × {threads} thread{'s' * (threads > 1)}, batch {batch}"
        self.batch = batch
        command = [sys.executable, "-c", RUNNER, str(model), engine, str(threads), str(batch)]
        self._processes = [
            subprocess.Popen(
                [*command, *map(str, photos)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            for _ in range(processes)
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def run(self, seconds: float) -> list[float]:
        """Seconds of each turn of the loop, of all processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
        times: list[float] = []
        for process in self._processes:
            assert process.stdout is not None
            times += json.loads(process.stdout.readline())
        return times

    def rate(self, seconds: float) -> float:
        """Images per second."""
        begun = time.perf_counter()
        turns = len(self.run(seconds))
        return turns * self.batch / (time.perf_counter() - begun)

    def close(self) -> None:
        for process in self._processes:
            process.communicate()


def daemon_latencies(daemon: DaemonProcess, files: list[int], seconds: float) -> list[float]:
    """Seconds a request, one at a time over one warm connection."""
    times = []
    with daemon.connect() as peer:
        until = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < until:
            reply = peer.ask(descriptor=files[len(times) % len(files)])
            assert reply.error is None, reply.error
            times.append(time.perf_counter() - begun)
    return times


def daemon_rate(daemon: DaemonProcess, files: list[int], seconds: float) -> float:
    """Images per second with `IN_FLIGHT` requests in flight on one connection."""
    with daemon.connect() as peer:
        sent = 0
        while sent < IN_FLIGHT:
            peer.send(sent, descriptor=files[sent % len(files)])
            sent += 1
        answered = 0
        begun = time.perf_counter()
        until = begun + seconds
        while time.perf_counter() < until:
            assert peer.receive().error is None
            answered += 1
            peer.send(sent, descriptor=files[sent % len(files)])
            sent += 1
        elapsed = time.perf_counter() - begun
        for _ in range(sent - answered):
            peer.receive()
    return answered / elapsed


@contextmanager
def running(folder: Path, *arguments: str, model: Path) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(folder, *arguments, model=model)
    try:
        yield daemon.wait_ready()
    finally:
        daemon.stop()
        daemon.end()


def calibrated(daemon: DaemonProcess, folder: Path) -> dict[str, int]:
    """Wait until the daemon has measured what suits this host."""
    wait_until(lambda: list((folder / "cache").glob("*.json")), "the calibration")
    daemon.wait_status(
        lambda s: [w["state"] for w in s["workers"]] == ["idle"] * (s["shape"]["workers"] + 1)
    )
    shape: dict[str, int] = daemon.status()["shape"]
    return shape


def paired(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of two figures measured in turns, and of their ratio pair by pair."""
    return {
        "median": statistics.median(a for a, _ in pairs),
        "against": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def whole_process(command: list[str], environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def proportional_memory(pids: list[int]) -> float:
    """Bytes of all processes, each page shared by n of them counted as 1/n (smaps_rollup)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def resident_memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def measure_speed(
    model: Path,
    photos: list[Path],
    folder: Path,
    engines: tuple[str, ...],
    scale: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Latency, throughput, a fresh process an image, and a kill, for one model."""
    found: dict[str, Any] = {}
    files = [os.open(path, os.O_RDONLY) for path in photos]
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        daemon = stack.enter_context(running(folder, engine_option(engines), model=model))
        say("calibrating")
        found["shape"] = calibrated(daemon, folder)

        say("latency")
        single = {
            (engine, threads): InProcess(model, photos, engine, 1, threads, 1)
            for engine in engines
            for threads in sorted({1, cores})
        }
        latency: dict[tuple[str, int], list[tuple[float, float]]] = {one: [] for one in single}
        for _ in range(6):
            for one, loop in single.items():
                ours = statistics.median(daemon_latencies(daemon, files, 2 * scale))
                theirs = statistics.median(loop.run(2 * scale))
                latency[one].append((ours, theirs))

        def alone(one: tuple[str, int]) -> float:
            return statistics.median(b for _, b in latency[one])

        best = min(latency, key=alone)
        found["latency"] = paired(latency[best]) | {"engine": best[0], "threads": best[1]}
        eager = min((one for one in latency if one[0] == "torch"), key=alone)
        found["latency_over_torch"] = paired(latency[eager]) | {"threads": eager[1]}

        say("a fresh process an image")
        swiprctl = [str(CLIENT / "swiprctl"), "predict", str(photos[0])]
        bare_python = [str(CLIENT / "python"), "-c", "pass"]
        environment = {**os.environ, "SWIPR_SOCKET": str(daemon.path)}
        fresh, bare, inside = [], [], []
        for _ in range(max(5, round(25 * scale))):
            fresh.append(whole_process(swiprctl, environment))
            bare.append(whole_process(bare_python, environment))
            inside.append(statistics.median(single[best].run(0.2)))
        found["fresh"] = {
            "median": statistics.median(fresh),
            "above_in_process": statistics.median(
                f - i for f, i in zip(fresh, inside, strict=True)
            ),
            "bare_python": statistics.median(bare),
            "above_bare_python": statistics.median(f - b for f, b in zip(fresh, bare, strict=True)),
        }
        for loop in single.values():
            loop.close()

        say("8 in flight")
        spreads = sorted({(p, cores // p) for p in (1, 2, 4, 8, cores) if cores % p == 0})
        rates: dict[str, float] = {}
        loops: dict[str, tuple[str, int, int, int]] = {}
        for processes, threads in spreads:
            for engine in engines:
                for batch in BATCHES:
                    loop = InProcess(model, photos, engine, processes, threads, batch)
                    rates[loop.name] = loop.rate(2 * scale)
                    loops[loop.name] = engine, processes, threads, batch
                    loop.close()
        top = sorted(rates, key=lambda name: -rates[name])[:2]
        rivals = {name: InProcess(model, photos, *loops[name]) for name in top}
        throughput: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
        for _ in range(5):
            for name, loop in rivals.items():
                ours = daemon_rate(daemon, files, 3 * scale)
                throughput[name].append((ours, loop.rate(3 * scale)))
        best_name = max(throughput, key=lambda n: statistics.median(b for _, b in throughput[n]))
        found["throughput"] = paired(throughput[best_name]) | {
            "best_in_process": best_name,
            "in_process": rates,
        }
        for loop in rivals.values():
            loop.close()

        say("kills")
        found["kill"] = {
            "one_worker": kill_to_answer(daemon, files[0], everyone=False),
            "all_workers": kill_to_answer(daemon, files[0], everyone=True),
        }
        found["front_rss"] = resident_memory(daemon.pid)
    for descriptor in files:
        os.close(descriptor)
    return found


def kill_to_answer(daemon: DaemonProcess, file: int, *, everyone: bool) -> float:
    """Seconds from the SIGKILL of the busy worker (or of all) to the next answer; median of 9."""
    times = []
    for _ in range(9):
        status = daemon.wait_status(
            lambda s: [w["state"] for w in s["workers"]] == ["idle"] * (s["shape"]["workers"] + 1)
        )
        pids = [w["pid"] for w in status["workers"]]
        warmest = max(status["workers"], key=lambda w: w["answered"])["pid"]
        with daemon.connect() as peer:
            for pid in pids if everyone else [warmest]:
                os.kill(pid, signal.SIGKILL)
            begun = time.perf_counter()
            assert peer.ask(descriptor=file).error is None
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def engine_option(engines: tuple[str, ...]) -> str:
    return f"--engine={engines[-1]}"


IMPORTS = {
    "torch": "import torch; from swiprd.inference.torchvision_import import import_torchvision;"
    " import_torchvision()",
    "onnx": "import numpy, PIL.Image, onnxruntime",
}
"""What an engine's processes cannot do without."""


def measure_start(model: Path, folder: Path, engine: str) -> dict[str, Any]:
    """Seconds from exec to READY=1, beside those of importing what it imports."""
    pairs = []
    for number in range(6):
        begun = time.perf_counter()
        with running(
            folder / f"start{number}",
            *("--workers=1", "--threads=1", "--batch=1", f"--engine={engine}"),
            model=model,
        ):
            ours = time.perf_counter() - begun
        imports = [sys.executable, "-c", IMPORTS[engine]]
        pairs.append((ours, whole_process(imports, quietly())))
    return paired(pairs[1:])  # the first fills the page cache


def quietly() -> dict[str, str]:
    """The environment for a process that imports onnxruntime, as swipr's have it."""
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}


def measure_cold(model: Path, photo: Path, folder: Path, engine: str) -> dict[str, Any]:
    """Seconds of `swiprctl predict` that has to start the daemon, beside those of the imports."""
    pairs = []
    folder.mkdir(mode=0o700, parents=True)
    environment = {
        **quietly(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    swiprctl = [str(Path(sys.executable).with_name("swiprctl")), "--model", str(model)]
    for _ in range(6):
        ours = whole_process([*swiprctl, "predict", str(photo)], environment)
        answer = subprocess.run(
            [*swiprctl, "status", "--json"], env=environment, check=True, stdout=subprocess.PIPE
        )
        pid = json.loads(answer.stdout)["pid"]
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the daemon has left")
        imports = [sys.executable, "-c", IMPORTS[engine]]
        pairs.append((ours, whole_process(imports, environment)))
    return paired(pairs[1:])


def measure_memory(model: Path, photos: list[Path], folder: Path, engine: str) -> dict[str, float]:
    """Proportional memory of all processes, each worker having answered."""
    found = {}
    for workers in (1, 4):
        shape = (f"--workers={workers}", "--threads=1", "--batch=1", f"--engine={engine}")
        with running(folder / f"memory{workers}", *shape, model=model) as daemon:
            daemon.wait_status(
                lambda s, n=workers: [w["state"] for w in s["workers"]] == ["idle"] * (n + 1)
            )
            files = [os.open(path, os.O_RDONLY) for path in photos]
            daemon_rate(daemon, files, 2.0)
            for descriptor in files:
                os.close(descriptor)
            found[str(workers)] = proportional_memory(daemon.family())
    return found


def table(results: dict[str, Any]) -> str:
    """The figures for people."""
    lines = []
    for name, found in results["models"].items():
        shape, latency, fresh = found["shape"], found["latency"], found["fresh"]
        throughput, kill, memory = found["throughput"], found["kill"], found["memory"]
        start = found["start"]
        rows = [
            (
                "calibrated",
                "{workers} × {threads}, batch {batch}".format(**shape),
                "workers × threads; an image alone gets {alone}".format(**shape),
            ),
            (
                "p50, one warm connection",
                f"{latency['median'] * 1e3:.2f} ms",
                f"{latency['ratio']:.3f} × in-process ({latency['against'] * 1e3:.2f} ms,"
                f" {latency['engine']}, {latency['threads']} threads)",
            ),
            (
                "",
                "",
                f"{found['latency_over_torch']['ratio']:.3f} × torch in-process"
                f" ({found['latency_over_torch']['against'] * 1e3:.2f} ms,"
                f" {found['latency_over_torch']['threads']} threads)",
            ),
            (
                f"{IN_FLIGHT} in flight",
                f"{throughput['median']:.1f} img/s",
                f"{throughput['ratio']:.3f} × in-process ({throughput['against']:.1f} img/s,"
                f" {throughput['best_in_process']})",
            ),
            (
                "fresh swiprctl an image",
                f"{fresh['median'] * 1e3:.1f} ms",
                f"{fresh['above_in_process'] * 1e3:.1f} ms above in-process;"
                f" {fresh['above_bare_python'] * 1e3:.1f} ms above bare python3"
                f" ({fresh['bare_python'] * 1e3:.1f} ms)",
            ),
            ("kill to next answer", f"{kill['one_worker'] * 1e3:.0f} ms", "one worker"),
            ("", f"{kill['all_workers'] * 1e3:.0f} ms", "all workers at once"),
            (
                "start to READY",
                f"{start['median'] * 1e3:.0f} ms",
                f"{start['ratio']:.2f} × importing what {found['engine']} needs"
                f" ({start['against'] * 1e3:.0f} ms)",
            ),
            (
                "swiprctl without a daemon",
                f"{found['cold']['median'] * 1e3:.0f} ms",
                f"{found['cold']['ratio']:.2f} × those imports",
            ),
            ("front, resident", f"{found['front_rss'] / 1e6:.1f} MB", ""),
            ("all, proportional", f"{memory['1'] / 1e6:.0f} MB", "1 worker and the standby"),
            ("", f"{memory['4'] / 1e6:.0f} MB", "4 workers and the standby"),
        ]
        lines.append(name)
        lines += [f"  {what:<26}{figure:>14}  {beside}".rstrip() for what, figure, beside in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE")
    parser.add_argument("--scale", type=float, default=1.0, help="of the time to measure for")
    parser.add_argument("--engine", choices=("torch", "onnx"), default="onnx", help="to serve with")
    parser.add_argument("--only", choices=ARCHITECTURES, action="append")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "models": {},
    }
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        photos = []
        for seed in range(IN_FLIGHT):
            photos.append(root / f"{seed}.jpg")
            photos[-1].write_bytes(photo(seed, SIZE))
        for architecture in options.only or ARCHITECTURES:
            folder = root / architecture
            model = make_folder(folder / "model", architecture, spread=0.1)

            def say(what: str, architecture: str = architecture) -> None:
                print(f"{architecture}: {what}", file=sys.stderr, flush=True)

            engines: tuple[str, ...] = ("torch",)
            if options.engine == "onnx":
                say("compiling")
                compile_into(model)
                engines = ("torch", "onnx")
            found = measure_speed(model, photos, folder / "speed", engines, options.scale, say)
            found["engine"] = options.engine
            say("start and memory")
            found["start"] = measure_start(model, folder, options.engine)
            found["cold"] = measure_cold(model, photos[0], folder / "cold", options.engine)
            found["memory"] = measure_memory(model, photos, folder, options.engine)
            results["models"][architecture] = found
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
