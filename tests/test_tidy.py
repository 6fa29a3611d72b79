"""The rules of the house that a machine can see: layers, bans, sizes."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("protocol", "core", "actors", "meterd")

# What a layer may not import, besides the layers above it.
IO_MODULES = frozenset(
    {"asyncio", "http", "io", "os", "pathlib", "random", "secrets", "select", "shutil"}
    | {"signal", "socket", "subprocess", "tempfile", "threading", "time", "urllib", "zmq"}
)
FORBIDDEN_MODULES = {"protocol": IO_MODULES, "core": IO_MODULES}
ALLOWED_MODULES = {
    "core/kernels/__init__.py": {"os", "pathlib", "tempfile"},  # where compiled kernels are cached
}
# Calls whose results differ from run to run.
UNSTABLE_CALLS = frozenset({"hash", "id", "input", "open", "print"})
ALLOWED_CALLS = {
    # The same array twice is stored once; no order comes from it.
    "core/state/metric_table.py": {"id"},
}
CATCH_ALL = {
    "actors/actor.py": "the one place that ends an actor for a bug",
    "actors/starting/founding.py": "the end of a forked process: nothing may return from it",
    "actors/node.py": "the end of the supervisor: a bug has an exit code of its own",
    "actors/offspring.py": "the end of a forked process: nothing may return from it",
    "meterd/client/async_producer.py": "its task lives on; flush raises what it caught",
    "meterd/client/outbox.py": "a mistake in the application's own function is raised by flush",
    "meterd/client/producer.py": "its thread lives on; flush raises what it caught",
    "meterd/admin.py": "the end of meterctl: a bug has an exit code of its own",
}
FILE_LINES_MAX, TEST_LINES_MAX, FUNCTION_LINES_MAX, PARAMETERS_MAX = 700, 1200, 70, 7
SHIM_LINES_MAX = 20
# Longer than the rule, and why; these numbers may only fall.
LONG_FUNCTIONS = {
    ("core/kernels/stage.py", "stage"): 98,  # one pass over rows: numba inlines no shared state
}
BANNED_NAMES = {"utils", "util", "common", "manager", "helpers", "misc"}


def tracked() -> list[str]:
    """Return what belongs to the project: files that git knows, or all in an unpacked archive."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        return [name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if ".venv" not in path.parts]


FILES = tracked()
SOURCES = [name for name in FILES if name.endswith(".py")]
LAYERED = [name for name in SOURCES if name.split("/")[0] in LAYERS]


def parse(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), name)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str | None:
    """Return the layer of an imported module; None when it is not ours."""
    parts = module.split(".")
    if parts[0] != "meterd":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "meterd"


@pytest.mark.parametrize("name", LAYERED)
def test_imports_point_one_way(name: str) -> None:
    own = LAYERS.index(name.split("/")[0])
    found = [m for m in imports(parse(name)) if m != "meterd"]
    above = [m for m in found if (layer := layer_of(m)) and LAYERS.index(layer) > own]
    assert set(above) <= {"meterd.__version__"}


@pytest.mark.parametrize("name", LAYERED)
def test_a_layer_imports_only_what_it_may(name: str) -> None:
    forbidden = FORBIDDEN_MODULES.get(name.split("/")[0], frozenset())
    used = {module.split(".")[0] for module in imports(parse(name))}
    assert used & forbidden == ALLOWED_MODULES.get(name, set())


@pytest.mark.parametrize("name", [n for n in LAYERED if n.startswith(("core/", "protocol/"))])
def test_what_decides_calls_nothing_that_differs_from_run_to_run(name: str) -> None:
    called = {
        node.func.id
        for node in ast.walk(parse(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & UNSTABLE_CALLS <= ALLOWED_CALLS.get(name, set())


@pytest.mark.parametrize("name", LAYERED)
def test_nothing_is_caught_wholesale(name: str) -> None:
    caught = [
        node.type.id if isinstance(node.type, ast.Name) else None
        for node in ast.walk(parse(name))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or isinstance(node.type, ast.Name))
    ]
    broad = [name for name in caught if name in (None, "Exception")]
    assert not broad or name in CATCH_ALL


@pytest.mark.parametrize("name", SOURCES)
def test_sizes(name: str) -> None:
    text = (ROOT / name).read_text()
    limit = TEST_LINES_MAX if name.startswith("tests/") else FILE_LINES_MAX
    assert text.count("\n") <= limit
    if name.startswith("tests/"):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            most = LONG_FUNCTIONS.get((name, node.name), FUNCTION_LINES_MAX)
            assert lines <= most, f"{node.name} has {lines} lines"
            if not _is_kernel(node) and not _is_command(node):
                count = _parameter_count(node)
                assert count <= PARAMETERS_MAX, f"{node.name} has {count} parameters"


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Compiled functions take arrays one by one: numba knows no dataclasses."""
    return any("njit" in ast.unparse(decorator) for decorator in node.decorator_list)


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """The parameters of a command are its flags."""
    return any("click." in ast.unparse(decorator) for decorator in node.decorator_list)


def _parameter_count(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count positional parameters; those given by name explain themselves."""
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("name", [n for n in LAYERED if not n.endswith("py.typed")])
def test_every_module_says_what_it_is(name: str) -> None:
    docstring = ast.get_docstring(parse(name))
    assert docstring, "no module docstring"


def test_modules_that_are_named_are_there() -> None:
    """As a whole path, one in the layer, or one in the same folder."""
    lost = []
    for name in LAYERED:
        path = ROOT / name
        places = (ROOT, ROOT / name.split("/")[0], path.parent)
        for module in re.findall(r"`([\w/]+\.py)`", path.read_text()):
            if not any((place / module).is_file() for place in places):
                lost.append(f"{name}: {module}")
    assert not lost


@pytest.mark.parametrize("name", sorted(f"bin/{path.name}" for path in (ROOT / "bin").iterdir()))
def test_the_programs_of_a_checkout_are_shims(name: str) -> None:
    assert (ROOT / name).read_text().count("\n") <= SHIM_LINES_MAX
    assert (ROOT / name).stat().st_mode & 0o111


def test_no_file_is_named_for_nothing_in_particular() -> None:
    assert not [name for name in FILES if Path(name).stem in BANNED_NAMES]


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    texts = {n: (ROOT / n).read_text() for n in FILES if n.endswith((".py", ".md", ".toml"))}
    texts.pop("tests/test_tidy.py", None)
    assert not [name for name, text in texts.items() if marks.search(text)]


def test_nobody_imports_a_second_copy() -> None:
    for name in SOURCES:
        for module in imports(parse(name)):
            assert module.split(".")[0] not in ("actors", "core", "protocol"), name
            assert not module.startswith(("meterd.tests", "meterd.meterd")), name
