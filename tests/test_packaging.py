"""What is installed, and that both programs run from a checkout and from a wheel."""

import configparser
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import meterd

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("meterd", "actors", "core", "protocol")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def packages_on_disk() -> set[str]:
    found = set()
    for layer in LAYERS:
        for marker in (ROOT / layer).rglob("__init__.py"):
            parts = marker.parent.relative_to(ROOT).parts
            found.add(".".join(parts if layer == "meterd" else ("meterd", *parts)))
    return found


def test_every_package_on_disk_is_installed() -> None:
    assert set(lines(setup_cfg()["options"]["packages"])) == packages_on_disk()


def test_every_folder_with_modules_is_a_package() -> None:
    for layer in LAYERS:
        for module in (ROOT / layer).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_what_is_imported_is_required() -> None:
    required = {line.split(">")[0] for line in lines(setup_cfg()["options"]["install_requires"])}
    assert required == {
        "click",
        "crc32c",
        "lz4",
        "msgpack",
        "numba",
        "numpy",
        "prometheus-client",
        "psutil",
        "pyzmq",
        "tzdata",
    }


@pytest.mark.parametrize("program", ["meterd", "meterctl"])
@pytest.mark.parametrize("interpreter_flags", [[], ["-I"], ["-P"]])
def test_a_program_runs_from_the_checkout(
    program: str, interpreter_flags: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, *interpreter_flags, str(ROOT / "bin" / program), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert meterd.__version__ in done.stdout


@pytest.mark.parametrize("program", ["meterd", "meterctl"])
def test_a_program_finds_the_interpreter_of_the_checkout(program: str, tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("no .venv in this checkout")
    link = tmp_path / program
    link.symlink_to(ROOT / "bin" / program)
    hidden = ("VIRTUAL_ENV", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [str(link), "--version"], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_compiling_ahead_writes_the_bytecode_of_every_module() -> None:
    """Also where Python itself writes none, and each start would compile all of them."""
    modules = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    compiled = [Path(importlib.util.cache_from_source(str(path))) for path in modules]
    compiled[0].unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "meterd.compile"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    assert [path for path in compiled if not path.exists()] == []


def test_optimised_python_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-O", str(ROOT / "bin" / "meterd"), "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert "python -O" in done.stderr


@pytest.mark.slow
def test_the_wheel_holds_everything_below_one_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    source = tmp_path / "source"
    subprocess.run(
        ["git", "checkout-index", "--all", f"--prefix={source}/"], cwd=ROOT, check=True, timeout=60
    )
    subprocess.run([*command, str(source)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        archive.extractall(installed)
    stem = f"meterd-{meterd.__version__}"
    assert tops == {"meterd", f"{stem}.dist-info", f"{stem}.data"}
    modules = {
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in (source / layer).rglob("*.py")
        for path in [ROOT / path.relative_to(source)]
    }
    expected = {name if name.startswith("meterd/") else f"meterd/{name}" for name in modules}
    found = {str(path.relative_to(installed)) for path in (installed / "meterd").rglob("*.py")}
    assert found == expected
    code = "import meterd.daemon, meterd.admin, meterd; print(meterd.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith(str(installed)), done.stderr
