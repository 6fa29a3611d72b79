"""The documents say what is true: options, telemetry, exit codes, wire codes, links."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from meterd.actors.measuring.catalog import FAMILIES, PREFIX
from meterd.actors.options import Options, all_keys
from meterd.exits import DaemonExit
from meterd.protocol.errors import CODES
from meterd.protocol.messages import KINDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench" / "README.md"]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_example_file_names_every_key_with_its_default() -> None:
    text = read("etc/meterd.toml.example")
    assert tomllib.loads(text) == {section: {} for section in tomllib.loads(text)}
    sections = tomllib.loads(re.sub(r"^#(?! )(?!$)", "", text, flags=re.MULTILINE))
    assert Options.from_mapping(sections) == Options()
    named = {(section, key) for section, values in sections.items() for key in values}
    assert named == {(section, field.name) for section, field in all_keys()}


def test_the_example_file_says_which_keys_reload() -> None:
    text = read("etc/meterd.toml.example")
    for _, field in all_keys():
        comment = re.search(rf"((?:^# .*\n)+)#{field.name} = ", text, re.MULTILINE)
        assert comment is not None
        assert ("reloads" in comment[1]) == bool(field.metadata.get("reloadable")), field.name


def test_every_option_is_read_somewhere() -> None:
    files = [*(ROOT / "actors").rglob("*.py"), *(ROOT / "meterd").glob("*.py")]
    code = "\n".join(path.read_text() for path in files)
    for section, field in all_keys():
        uses = re.findall(rf"\b\w+\.{field.name}\b", code)
        assert uses, f"{section}.{field.name} is not used"


def test_all_telemetry_is_described() -> None:
    page = read("docs/OPERATIONS.md")
    for family in FAMILIES:
        labels = "{" + ",".join(family.labels) + "}" if family.labels else ""
        assert f"| `{PREFIX}{family.name}{labels}` | {family.kind} | {family.help} |" in page


def test_alerts_use_telemetry_that_exists_and_are_explained() -> None:
    rules = read("etc/alerts.yml")
    names = {family.name for family in FAMILIES}
    for used in re.findall(rf"{PREFIX}([a-z0-9_]+)", rules):
        assert used.removesuffix("_bucket") in names
    page = read("docs/OPERATIONS.md")
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert alerts
    assert not [alert for alert in alerts if f"`{alert}`" not in page]


def test_all_exit_codes_are_described() -> None:
    page = read("docs/OPERATIONS.md")
    table = page[page.index("## Exit codes") : page.index("## The data directory")]
    described = {
        int(n) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for n in row.split(",")
    }
    assert described == {int(code) for code in DaemonExit}


@pytest.mark.parametrize("name", sorted({*CODES, *KINDS}))
def test_every_code_and_kind_of_the_wire_is_described(name: str) -> None:
    assert f"`{name}`" in read("docs/PROTOCOL.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


UNITS = sorted(path.name for path in (ROOT / "etc").glob("*.service"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", UNITS)
def test_the_unit_files_are_sound_and_well_closed(name: str, tmp_path: Path) -> None:
    for path in [*(ROOT / "etc").glob("*.service"), *(ROOT / "etc").glob("*.timer")]:
        text = re.sub(r"/opt/meterd/bin/(meterd|meterctl)", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
    units = [name, name.replace(".service", ".timer")]
    units = [str(tmp_path / unit) for unit in units if (tmp_path / unit).exists()]
    verified = subprocess.run(
        ["systemd-analyze", "verify", *units],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    rating = ["systemd-analyze", "security", "--offline=true", "--threshold=20", units[0]]
    rated = subprocess.run(rating, capture_output=True, text=True, timeout=60)
    assert rated.returncode == 0, rated.stdout[-300:]


def test_every_unit_but_the_node_has_a_timer_and_is_described() -> None:
    page = read("docs/BACKUP.md")
    for name in UNITS:
        if name != "meterd.service":
            assert (ROOT / "etc" / name.replace(".service", ".timer")).exists()
            assert f"`{name.removesuffix('.service')}" in page
