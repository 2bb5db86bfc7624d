"""The arrows between the modules, and the house's other rules, read from the sources by AST."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(30)

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "torchvision", "timm", "safetensors", "onnx", "onnxruntime"} | {
    *("numpy", "PIL", "pillow_heif")
}

MAY_BE_HEAVY = {"swiprd.inference", "swiprd.pack", "swiprd.training", "swiprd.check"}
"""Folders, and one command, that may import torch. Each of them runs in a process of its own."""

MAY_IMPORT = {
    "front": {"config", "intake", "pool", "system"},
    "intake": {"system"},
    "pool": {"config", "folder", "system"},
    "inference": {"folder", "system"},
    "folder": {"system"},
    "system": set(),
    "pack": {"config", "inference", "folder", "system"},
    "training": {"inference", "folder"},
    "models": set(),
}
"""Which folders of swiprd a folder may import, besides itself."""

LIGHT = {"swiprd.pack", "swiprd.pack.options"}
"""Of those, what the command line of `swiprd` is made of."""

COMMANDS = {"swiprd.check", "swiprd.pack.command", "swiprd.trust"}
"""What `swiprd` runs in a process of its own, never beside a daemon's front."""

SHARED = {"swiprctl.errors", "swiprctl.protocol", "swiprctl.version"}
"""What the daemon may import of the client's package."""

PRINTED = {"swiprctl.report", "swiprctl.rows"}
"""And those commands too, whose output is to read like the client's."""

WITHOUT_TORCH = {
    f"swiprd.inference.{name}"
    for name in (
        *("area", "decode", "decode_limits", "decoders", "engine", "examined", "examined_onnx"),
        *("forkserver", "onnx_model", "onnx_network", "onnx_session", "preprocess", "sampling"),
        "separate",
        "worker",
    )
}
"""Of what runs models, those that know no library that does: they serve beside any."""

LIGHT_ENOUGH = {"numpy", "PIL", "pillow_heif"}
"""What these may import all the same."""

ANYTHING = re.compile(r"\b(Base)?Exception\b")

MANAGERS = re.compile(r"\b(?:LISTEN_(?:PID|FDS|FDNAMES)|NOTIFY_SOCKET|WATCHDOG_(?:USEC|PID))\b")


class Import:
    """One import statement's target: a module's full name, and where it stands."""

    def __init__(self, name: str, line: int, *, in_function: bool, for_types: bool) -> None:
        self.name = name
        self.line = line
        self.in_function = in_function
        self.for_types = for_types

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


class Module:
    """A source file, parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = path.relative_to(ROOT).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.imports = list(self._imports(self.tree, in_function=False, for_types=False))

    def _imports(self, node: ast.AST, *, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import():
                    line, names = child.lineno, [alias.name for alias in child.names]
                case ast.ImportFrom():
                    assert child.level == 0, f"{self.name}: a relative import"
                    # `from package import module` imports both; of a name, only the first.
                    module = child.module or ""
                    line, names = child.lineno, [module]
                    names += [f"{module}.{alias.name}" for alias in child.names]
                case _:
                    line, names = 0, []
            for name in names:
                yield Import(name, line, in_function=in_function, for_types=for_types)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for statement in child.body:
                    yield from self._imports(
                        ast.Module([statement], []), in_function=in_function, for_types=True
                    )
                for statement in child.orelse:
                    yield from self._imports(
                        ast.Module([statement], []), in_function=in_function, for_types=for_types
                    )
            else:
                yield from self._imports(
                    child, in_function=in_function or inside, for_types=for_types
                )

    @property
    def run(self) -> list[Import]:
        """What is imported when it runs, some time."""
        return [one for one in self.imports if not one.for_types]

    def strings(self) -> Iterator[str]:
        """Its string constants, docstrings left out."""
        words = {
            id(node.value)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and id(node) not in words:
                yield str(node.value)


MODULES = {
    module.name: module
    for package in ("swiprctl", "swiprd")
    for module in map(Module, sorted((ROOT / package).rglob("*.py")))
}
CLIENT = [module for module in MODULES.values() if module.name.startswith("swiprctl")]
DAEMON = [module for module in MODULES.values() if module.name.startswith("swiprd")]


def imported(module: Module, *, at_start: bool = False) -> set[str]:
    """Modules of this house that a module imports."""
    found = set()
    for one in module.run:
        if one.name in MODULES and not (at_start and one.in_function):
            found.add(one.name)
    return found - {module.name}


def test_the_house_is_here() -> None:
    assert {"swiprctl.cli", "swiprctl.protocol", "swiprd.pool.pool"} <= set(MODULES)


def places(module: Module, imports: Iterable[Import]) -> list[str]:
    return [f"{module.path}:{one.line}: {one.name}" for one in imports]


def test_the_client_knows_nothing_of_the_daemon() -> None:
    for module in CLIENT:
        assert not places(module, (one for one in module.imports if one.top == "swiprd"))


def test_the_client_needs_the_standard_library_and_msgpack() -> None:
    known = {*sys.stdlib_module_names, "msgpack", "swiprctl"}
    for module in CLIENT:
        assert not places(module, (one for one in module.run if one.top not in known))


def test_the_daemon_shares_little_with_the_client() -> None:
    for module in DAEMON:
        of_client = [one for one in module.imports if one.top == "swiprctl"]
        shared = SHARED | PRINTED if module.name in COMMANDS else SHARED
        strange = [one for one in of_client if one.name in MODULES and one.name not in shared]
        assert not places(module, strange)


def heavy(name: str) -> bool:
    """Whether a module may import torch and the like: it runs in a process of its own."""
    return name.startswith(tuple(f"{folder}." for folder in MAY_BE_HEAVY)) or name in MAY_BE_HEAVY


def test_who_may_import_torch() -> None:
    for module in MODULES.values():
        if not heavy(module.name):
            assert not places(module, (one for one in module.run if one.top in HEAVY))


def test_the_front_reaches_none_of_it() -> None:
    """What `swiprd serve` imports, and all that those import, on the way to its first request."""
    seen: set[str] = set()
    todo = {"swiprd.__main__"}
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= imported(MODULES[name]) - seen - COMMANDS
    assert {"swiprd.pool.pool", "swiprd.front.server"} <= seen
    assert not [name for name in seen if heavy(name) and name not in LIGHT]


@pytest.mark.parametrize("name", sorted(WITHOUT_TORCH))
def test_who_serves_without_torch(name: str) -> None:
    """Not by way of another module either; the forkserver takes it in when it loads a model."""
    at_start = name == "swiprd.inference.forkserver"
    seen: set[str] = set()
    todo = {name}
    while todo:
        module = MODULES[todo.pop()]
        seen.add(module.name)
        todo |= imported(module, at_start=at_start) - seen
        found = (one for one in module.run if not (at_start and one.in_function))
        assert not places(module, (one for one in found if one.top in HEAVY - LIGHT_ENOUGH))


def folder_of(name: str) -> str:
    return name.split(".")[1] if name.count(".") > 1 else ""


def test_folders_import_one_another_one_way() -> None:
    for module in DAEMON:
        folder = folder_of(module.name)
        if not folder:
            continue
        allowed = {folder, *MAY_IMPORT[folder]}
        for name in imported(module):
            if name.startswith("swiprd."):
                found = folder_of(name) or name.removeprefix("swiprd.")
                assert found in allowed, f"{module.path}: {name}"


def test_no_cycle() -> None:
    graph = {name: imported(module) for name, module in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' → '.join(error.args[1])}")


def test_the_wire_is_pure() -> None:
    forbidden = {"socket", "_socket", "time", "logging", "selectors", "select", "asyncio", "os"}
    assert not {one.top for one in MODULES["swiprctl.protocol"].run} & forbidden


@pytest.mark.parametrize(
    "name",
    [
        *("front.request_queue", "front.byte_budget", "front.poison", "front.round_robin"),
        *("front.short_deadlines", "front.stats", "front.suspicion", "folder.canary"),
        *("inference.decode_limits", "pool.recycling", "pool.states", "pool.stragglers"),
        *("pool.shape_search", "pool.thread_choice", "pool.typical"),
    ],
)
def test_what_decides_is_pure(name: str) -> None:
    forbidden = {"socket", "time", "logging", "selectors", "select", "asyncio", "os", "datetime"}
    assert not {one.top for one in MODULES[f"swiprd.{name}"].run} & forbidden


def test_nobody_reads_a_clock_that_jumps() -> None:
    """Deadlines, ages and retries run on CLOCK_MONOTONIC, which nobody can set."""
    steady = {"time.monotonic", "time.clock_gettime_ns(time.CLOCK_MONOTONIC)", "time.sleep"}
    jumping = re.compile(
        r"\btime\.(?!monotonic\b|perf_counter\b|process_time\b|clock_gettime|CLOCK_MONOTONIC)\w+|\bdatetime\b"
    )
    for module in MODULES.values():
        if module.name.startswith("swiprd.training."):
            continue  # what trains a model serves nobody
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert text in steady or not jumping.search(text), f"{module.path}: {text}"


def test_errors_imports_nothing() -> None:
    assert {one.top for one in MODULES["swiprctl.errors"].imports} == {"__future__"}


def test_every_module_opens_with_its_job() -> None:
    for module in MODULES.values():
        assert ast.get_docstring(module.tree), module.path


def test_no_error_is_swallowed_whole() -> None:
    for module in MODULES.values():
        for node in ast.walk(module.tree):
            where = f"{module.path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "BaseException"
                idle = all(
                    isinstance(statement, ast.Pass | ast.Continue)
                    or (
                        isinstance(statement, ast.Expr)
                        and isinstance(statement.value, ast.Constant)
                    )
                    for statement in node.body
                )
                assert not (idle and ANYTHING.search(caught)), where
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                assert not any(ANYTHING.fullmatch(ast.unparse(one)) for one in node.args), where


def reads(module: Module) -> Iterator[str]:
    """What it looks up by name: `a.get(…)`, `a.pop(…)`, `getenv(…)`, or `a[…]` where it is read."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and node.args:
            if ast.unparse(node.func).rpartition(".")[2] in ("get", "pop", "getenv", "getenvb"):
                yield ast.unparse(node.args[0])
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            yield ast.unparse(node.slice)


def test_one_module_reads_what_the_manager_says() -> None:
    for module in MODULES.values():
        found = {name for text in module.strings() for name in MANAGERS.findall(text)}
        if module.name == "swiprd.system.systemd":
            assert found == {
                *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
                *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
            }
        elif module.name == "swiprctl.autostart":
            # There it is the manager: it sets some for its child and hides the others from it.
            assert not any(MANAGERS.search(read) for read in reads(module)), module.path
        else:
            assert not found, module.path


def test_only_the_composition_roots_exit() -> None:
    for module in DAEMON:
        calls = {
            ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)
        }
        if module.name != "swiprd.__main__" and not module.name.startswith("swiprd.training."):
            assert not calls & {"sys.exit", "exit", "quit"}, module.path
