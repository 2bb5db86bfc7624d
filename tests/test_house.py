"""The arrows between the modules, and the house's other rules, read from the sources by AST."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(30)

ROOT = Path(__file__).parent.parent
FOCUS = "swiprd.models.focus"

HEAVY = {"torch", "torchvision", "numpy", "PIL"}
MAY_BE_HEAVY = {"swiprd.worker", "swiprd.images", "swiprd.model"}
HEAVY_IN_FUNCTIONS = {"swiprd.forkserver"}

SHARED = {"swiprctl.errors", "swiprctl.protocol", "swiprctl.version"}
"""What the daemon may import of the client's package."""

LONGEST = 300
LONG = {"swiprd.bundle", "swiprd.model", "swiprd.pool", "swiprd.service"}
"""Modules that are longer. Each should be on its way out of this set."""


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
                    names = [alias.name for alias in child.names]
                case ast.ImportFrom():
                    assert child.level == 0, f"{self.name}: a relative import"
                    # `from package import module` imports both; of a name, only the first.
                    module = child.module or ""
                    names = [module]
                    names += [f"{module}.{alias.name}" for alias in child.names]
                case _:
                    names = []
            for name in names:
                yield Import(name, child.lineno, in_function=in_function, for_types=for_types)
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

    def strings(self) -> Iterator[tuple[int, str]]:
        """Its string constants, docstrings left out."""
        words = (
            {
                id(statement.value)
                for node in ast.walk(self.tree)
                for statement in getattr(node, "body", [])
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            }
            if True
            else set()
        )
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in words:
                    yield node.lineno, node.value


MODULES = {
    module.name: module
    for package in ("swiprctl", "swiprd")
    for module in map(Module, sorted((ROOT / package).rglob("*.py")))
}
EACH = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
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
    assert {"swiprctl.cli", "swiprctl.protocol", "swiprd.pool", "swiprd.__main__"} <= set(MODULES)


@pytest.mark.parametrize("module", CLIENT, ids=lambda m: m.name)
def test_the_client_knows_nothing_of_the_daemon(module: Module) -> None:
    found = [f"line {one.line}: {one.name}" for one in module.imports if one.top == "swiprd"]
    assert not found


@pytest.mark.parametrize("module", DAEMON, ids=lambda m: m.name)
def test_the_daemon_shares_little_with_the_client(module: Module) -> None:
    found = {
        one.name
        for one in module.imports
        if one.top == "swiprctl" and one.name in MODULES and one.name != "swiprctl"
    }
    assert found <= SHARED
    bare = [one.line for one in module.imports if one.name == "swiprctl"]
    assert not bare, f"lines {bare}: `from swiprctl import …` runs what the daemon does not need"


@EACH
def test_who_may_import_torch(module: Module) -> None:
    heavy = [one for one in module.run if one.top in HEAVY]
    if module.name in MAY_BE_HEAVY or module.name.startswith(f"{FOCUS}."):
        return
    if module.name in HEAVY_IN_FUNCTIONS:
        heavy = [one for one in heavy if not one.in_function]
    assert not heavy, [f"line {one.line}: {one.name}" for one in heavy]


def test_the_front_reaches_none_of_it() -> None:
    """What `swiprd serve` imports, and all that those import, on the way to its first request."""
    seen: set[str] = set()
    todo = {"swiprd.__main__"}
    while todo:
        name = todo.pop()
        seen.add(name)
        # The forkserver's functions run elsewhere, in the process that is executed for them.
        todo |= imported(MODULES[name], at_start=name in HEAVY_IN_FUNCTIONS) - seen
    assert {"swiprd.pool", "swiprd.forkserver"} <= seen
    assert not seen & MAY_BE_HEAVY
    assert not [name for name in seen if name.startswith(FOCUS)]


@pytest.mark.parametrize("module", CLIENT, ids=lambda m: m.name)
def test_the_client_needs_the_standard_library_and_msgpack(module: Module) -> None:
    import sys

    known = {*sys.stdlib_module_names, "msgpack", "swiprctl"}
    found = [f"line {one.line}: {one.name}" for one in module.run if one.top not in known]
    assert not found


def test_no_cycle() -> None:
    graph = {name: imported(module) for name, module in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [
        (
            "swiprctl.protocol",
            {"socket", "_socket", "time", "logging", "selectors", "select", "os"},
        ),
        *(
            (f"swiprd.{name}", {"asyncio", "socket", "time", "os", "select", "logging"})
            for name in ("admission", "lifecycle", "canary", "stats")
        ),
    ],
)
def test_what_is_pure(name: str, forbidden: set[str]) -> None:
    assert not {one.top for one in MODULES[name].run} & forbidden


def test_errors_imports_nothing() -> None:
    assert {one.top for one in MODULES["swiprctl.errors"].imports} == {"__future__"}


@EACH
def test_it_opens_with_its_job(module: Module) -> None:
    words = ast.get_docstring(module.tree)
    assert words, "no docstring"
    assert words[0].isupper() or not words[0].isalpha(), words.splitlines()[0]


@EACH
def test_it_fits_in_the_head(module: Module) -> None:
    lines = module.text.count("\n")
    if module.name in LONG:
        assert lines > LONGEST, "short again: take it off the list"
    else:
        assert lines <= LONGEST


@EACH
def test_no_error_is_swallowed_whole(module: Module) -> None:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if re.search(r"\b(Base)?Exception\b", caught):
                idle = all(isinstance(s, ast.Pass | ast.Continue | ast.Constant) for s in node.body)
                idle = idle or all(
                    isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body
                )
                assert not idle, f"line {node.lineno}: except {caught}: pass"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            suppressed = {ast.unparse(argument) for argument in node.args}
            assert not suppressed & {"Exception", "BaseException"}, f"line {node.lineno}"


MANAGERS = re.compile(r"\b(LISTEN_(PID|FDS|FDNAMES)|NOTIFY_SOCKET|WATCHDOG_(USEC|PID))\b")


@EACH
def test_one_module_reads_what_the_manager_says(module: Module) -> None:
    found = {match for _, text in module.strings() for match in MANAGERS.findall(text)}
    if module.name == "swiprd.systemd":
        assert len(found) == 6
        return
    if module.name == "swiprctl.autostart":  # it is the manager
        assert not re.search(r"environ(\.get|\.pop|b?\[)", module.text.replace(" ", ""))
        return
    keywords = {node.arg for node in ast.walk(module.tree) if isinstance(node, ast.keyword)}
    found |= {(name, "", "") for name in keywords if name and MANAGERS.fullmatch(name)}
    assert not found


@pytest.mark.parametrize("module", DAEMON, ids=lambda m: m.name)
def test_only_the_composition_root_exits(module: Module) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    if module.name != "swiprd.__main__" and not module.name.startswith(f"{FOCUS}."):
        assert not calls & {"sys.exit", "exit", "quit"}
