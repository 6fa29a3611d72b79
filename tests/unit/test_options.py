"""Settings: values as people write them, limits, sources and what a reload may change."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd import config
from meterd.actors import endings
from meterd.actors.options import (
    DURATION_UNITS,
    SIZE_UNITS,
    Options,
    all_keys,
    format_value,
    parse_value,
)
from meterd.actors.starting import peer_list
from meterd.exits import DaemonExit
from meterd.protocol.errors import ConfigError


def load(
    tmp_path: Path, toml: str = "", environment: dict[str, str] | None = None, **flags: str
) -> Options:
    path = tmp_path / "meterd.toml"
    path.write_text(toml)
    given = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    return config.load(given, environment or {}, str(path))


@pytest.mark.parametrize(("section", "field"), [*all_keys()], ids=lambda one: str(one)[:24])
def test_every_default_keeps_its_own_limits(section: str, field: object) -> None:
    default = field.default  # type: ignore[attr-defined]
    written = format_value(field.metadata["kind"], default)  # type: ignore[attr-defined]
    name = field.name  # type: ignore[attr-defined]
    assert parse_value(section, name, written) == default
    assert parse_value(section, name, default) == default


@given(st.sampled_from([*filter(None, SIZE_UNITS)]), st.integers(1, 1 << 20))
def test_sizes_are_written_as_they_are_read(unit: str, number: int) -> None:
    size = number * SIZE_UNITS[unit]
    if size <= 1 << 50:
        assert parse_value("disk", "warn_free", f"{number}{unit}") == size
        assert parse_value("disk", "warn_free", format_value("size", size)) == size


@given(st.sampled_from([*DURATION_UNITS]), st.integers(1, 60))
def test_durations_are_written_as_they_are_read(unit: str, number: int) -> None:
    seconds = number * DURATION_UNITS[unit]
    if 1 <= seconds <= 86_400:
        assert parse_value("retention", "sweep_interval", f"{number}{unit}") == seconds
        written = format_value("duration", seconds)
        assert parse_value("retention", "sweep_interval", written) == pytest.approx(seconds)


@given(
    st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text()))
)
def test_any_value_is_taken_or_refused_with_the_key_named(value: object) -> None:
    for section, field in all_keys():
        try:
            parse_value(section, field.name, value)
        except ConfigError as error:
            assert f"{section}.{field.name}" in str(error)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    toml = '[node]\nport = 7100\nhttp_port = 9100\nid = 3\n[wal]\nsegment_size = "16MiB"\n'
    environment = {"METERD__NODE__PORT": "7200", "METERD__NODE__HTTP_PORT": "9200", "HOME": "/x"}
    options = load(tmp_path, toml, environment, port="7300")
    assert options.node.port == 7300
    assert options.node.http_port == 9200
    assert options.node.id == 3
    assert options.wal.segment_size == 16 << 20
    assert options.retention.days == 90


@pytest.mark.parametrize(
    ("toml", "environment", "words"),
    [
        ("[wal]\nsegmentsize = 1\n", {}, ["wal.segment_size", "meterd.toml"]),
        ("[wall]\nsegment_size = 1\n", {}, ["did you mean wal?", "meterd.toml"]),
        ("port = 1\n", {}, ["port", "meterd.toml"]),
        ("[node\n", {}, ["no TOML"]),
        ("wal = 3\n", {}, ["section"]),
        ("[node]\nport = 70000\n", {}, ["node.port", "65535", "meterd.toml"]),
        ("[node]\nport = true\n", {}, ["node.port"]),
        ("[wal]\nsegment_size = inf\n", {}, ["wal.segment_size"]),
        ('[wal]\nsegment_size = "64MB"\n', {}, ["wal.segment_size", "64MiB"]),
        ("", {"METERD__NODE__PROT": "1"}, ["node.port", "METERD__NODE__PROT"]),
        ("", {"METERD__PORT": "1"}, ["METERD__SECTION__KEY"]),
        ("[node]\nport = 9090\n", {}, ["node.http_port"]),
        ('[disk]\nstop_free = "9GiB"\n', {}, ["disk.stop_free"]),
        ("[wal]\nmin_segments = 200\n", {}, ["wal.min_segments", "wal.max_segments"]),
        ('[archive]\ntarget = "./copies"\n', {}, ["archive.target", "s3://"]),
        ('[archive]\ntarget = "/a"\ncommand = "cp {path} /a"\n', {}, ["archive.command"]),
        ('[archive]\ncommand = "cp x /a"\n', {}, ["archive.command", "{path}"]),
        ('[archive]\nverify_command = "cat x"\n', {}, ["archive.verify_command", "{name}"]),
        ("[compaction]\nenabled = 1\n", {}, ["compaction.enabled", "true or false"]),
        ("", {"METERD__COMPACTION__ENABLED": "on"}, ["compaction.enabled", "'on'"]),
        ('[log]\nlevel = "loud"\n', {}, ["log.level", "debug"]),
        (f"[retention]\ndays = 1{400 * '0'}\n", {}, ["retention.days", "too large"]),
        (f"[retention]\nsweep_interval = 1{400 * '0'}\n", {}, ["sweep_interval", "too large"]),
        (f'[retention]\ndays = "1{5000 * "0"}"\n', {}, ["retention.days", "too large"]),
        ('[node]\ndata_dir = "a\\u0000b"\n', {}, ["node.data_dir", "meterd.toml"]),
        ("", {"METERD__NODE__ADVERTISE": "\udcff"}, ["node.advertise"]),
        ('[node]\nlisten = ""\n', {}, ["node.listen", "127.0.0.1"]),
        ("", {"METERD__NODE__DATA_DIR": ""}, ["node.data_dir", "./data"]),
        ('[node]\nadvertise = "a b"\n', {}, ["node.advertise", "host name"]),
        (f"a = {10_000 * '['}", {}, ["no TOML"]),
        (f"#{(1 << 20) * 'x'}\n", {}, ["meterd.toml", "1048576 bytes"]),
    ],
)
def test_a_complaint_names_key_origin_and_a_way_out(
    tmp_path: Path, toml: str, environment: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml, environment)
    for word in words:
        assert word in str(caught.value)


def test_a_variable_for_the_file_that_is_empty_names_none() -> None:
    assert config.load({}, {"METERD_CONFIG": ""}, None) == config.load({}, {}, None)


@pytest.mark.parametrize("written", ["true", '"true"', "false", '"false"'])
def test_a_switch_is_written_as_toml_has_it_or_as_text(tmp_path: Path, written: str) -> None:
    wanted = "true" in written
    options = load(tmp_path, f"[compaction]\nenabled = {written}\n")
    assert options.compaction.enabled is wanted
    assert Options.from_json(options.to_json()) == options
    variable = {"METERD__COMPACTION__ENABLED": written.strip('"')}
    assert load(tmp_path, environment=variable).compaction.enabled is wanted


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load({}, {"METERD_CONFIG": str(tmp_path / "none.toml")}, None)


THREE = "1:a:8001,2:b:8001,3:c:8001"


def test_the_nodes_of_a_cluster_come_from_flag_variable_and_file(tmp_path: Path) -> None:
    for options in (
        load(tmp_path, node_id="2", peers=THREE),
        load(tmp_path, environment={"METERD__NODE__PEERS": THREE, "METERD__NODE__ID": "2"}),
        load(tmp_path, f'[node]\nid = 2\npeers = "{THREE}"\n'),
    ):
        assert options.node.cluster_nodes == peer_list.parse(THREE)
        assert Options.from_json(options.to_json()) == options
    assert load(tmp_path).node.cluster_nodes == ()


def test_the_own_entry_is_ignored_but_for_its_name(tmp_path: Path) -> None:
    own = load(tmp_path, node_id="2", port="7005", peers=THREE).node
    assert own.cluster_nodes[1] == (2, "b", 8005)
    assert own.replication_port == 8005
    absent = load(tmp_path, node_id="2", listen="10.0.0.2", peers="1:a:8001,3:c:8001").node
    assert absent.cluster_nodes[1] == (2, "10.0.0.2", 8001)
    named = load(tmp_path, node_id="2", advertise="me", peers=THREE).node
    assert named.cluster_nodes[1] == (2, "me", 8001)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peers": "nonsense"}, "NODE_ID:HOST:REPLICATION_PORT"),
        ({"peers": "1:a:8001:9"}, "NODE_ID:HOST:REPLICATION_PORT"),
        ({"peers": "1:a b:8001"}, "NODE_ID:HOST:REPLICATION_PORT"),
        ({"peers": "1:[a]:8001"}, "NODE_ID:HOST:REPLICATION_PORT"),
        ({"peers": "1:_a:8001"}, "NODE_ID:HOST:REPLICATION_PORT"),
        ({"peers": "1:-a:8001"}, "NODE_ID:HOST:REPLICATION_PORT"),
        ({"advertise": "_me"}, "node.advertise"),
        ({"peers": "1:a:8001,1:b:8001"}, "node 1 stands in it twice"),
        ({"peers": "1:a:8001,2:a:8001"}, "nodes 1 and 2 have the same address"),
        ({"peers": "0:a:8001"}, "from 1 to 255"),
        ({"peers": "256:a:8001"}, "from 1 to 255"),
        ({"peers": "1:a:999"}, "no replication port"),
        ({"peers": "1:a:65536"}, "no replication port"),
        ({"peers": "2:me:8001"}, "only this node itself"),
        ({"peers": THREE, "node_id": "0"}, "--node-id"),
        ({"peers": THREE, "node_id": "300"}, "--node-id"),
        ({"peers": THREE, "port": "65000"}, "1000 above"),
        ({"peers": THREE, "http_port": "8001"}, "replication port"),
        ({"bootstrap": "join"}, "join wants --peers"),
    ],
)
def test_a_list_of_peers_that_cannot_be_meant_is_refused(
    tmp_path: Path, values: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        load(tmp_path, **{"node_id": "2", **values})


def test_peers_may_be_ipv6() -> None:
    assert peer_list.parse("1:[::1]:8001, 2:::1:8002,3:host:8003") == (
        (1, "::1", 8001),
        (2, "::1", 8002),
        (3, "host", 8003),
    )
    assert peer_list.parse("1:[fe80::1%eth0]:8001")[0].address == "[fe80::1%eth0]:8001"
    assert peer_list.split("[::1]:8001") == ("::1", 8001)


def test_an_even_count_and_a_port_that_nobody_finds_are_warned_of() -> None:
    assert peer_list.warnings(1, 7001, THREE) == []
    (even,) = peer_list.warnings(4, 7001, THREE)
    assert "4 nodes" in even
    (port,) = peer_list.warnings(1, 7002, THREE)
    assert "8002" in port


@given(st.text(max_size=60))
def test_any_list_of_peers_is_read_or_refused(text: str) -> None:
    try:
        peers = peer_list.parse(text)
    except ConfigError:
        return
    again = ",".join(f"{peer.node}:{peer.address}" for peer in peers)
    assert peer_list.parse(again) == peers


def test_what_listens_everywhere_advertises_a_name(tmp_path: Path) -> None:
    assert load(tmp_path).node.advertise == "127.0.0.1"
    assert load(tmp_path, listen="0.0.0.0").node.advertise not in ("", "0.0.0.0")
    assert load(tmp_path, listen="0.0.0.0").node.http_listen == "0.0.0.0"
    assert load(tmp_path, listen="0.0.0.0", advertise="me").node.advertise == "me"


def test_options_survive_being_written_and_read() -> None:
    options = Options.from_mapping({"node": {"id": 7}, "log": {"level": "debug"}})
    assert Options.from_json(options.to_json()) == options


def test_a_reload_takes_what_may_change_and_names_what_needs_a_restart() -> None:
    before = Options()
    after = Options.from_mapping({"node": {"port": 1234}, "log": {"level": "debug"}})
    taken, kept = before.reloaded(after)
    assert taken.log.level == "debug"
    assert taken.node.port == before.node.port
    assert kept == ["node.port"]


def test_exit_codes_are_the_same_numbers_in_every_layer() -> None:
    for name in vars(endings):
        if name.isupper() and name != "HALTING":
            assert getattr(endings, name) == DaemonExit[name]
    assert set(DaemonExit.__members__) <= set(vars(endings))
