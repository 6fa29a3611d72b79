"""Reads the configuration: flags over environment over file over defaults, and no unknown key.

Each value is checked where it is read, so a complaint names its origin: the flag, the variable
``METERD__SECTION__KEY`` or the file.  The rest of the node sees `Options` only.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from meterd.actors.options import Options, find_section, parse_value
from meterd.actors.starting import peer_list
from meterd.protocol.errors import ConfigError

PREFIX = "METERD__"
FILE_VARIABLE = "METERD_CONFIG"
FILE_SIZE_MAX = 1 << 20

# Flags of the daemon, each a key.
FLAGS = {
    "--node-id": "node.id",
    "--data-dir": "node.data_dir",
    "--listen": "node.listen",
    "--advertise": "node.advertise",
    "--port": "node.port",
    "--http-port": "node.http_port",
    "--peers": "node.peers",
    "--bootstrap": "node.bootstrap",
    "--retention-days": "retention.days",
    "--log-level": "log.level",
    "--log-format": "log.format",
}

# One setting as a source has it: section, key, value, where it stands.
Setting = tuple[str, str, object, str]


def load(flags: Mapping[str, str], environment: Mapping[str, str], path: str | None) -> Options:
    """Read all sources and return complete options.  Raises ConfigError."""
    path = path or environment.get(FILE_VARIABLE) or None  # an empty one is as good as none
    merged: dict[str, dict[str, object]] = {}
    sources = [*from_file(path), *from_environment(environment), *from_flags(flags)]
    for section, key, value, origin in sources:
        try:
            parsed = parse_value(section, key, value)
        except ConfigError as error:
            raise ConfigError(f"{error.message} ({origin})") from error
        merged.setdefault(section, {})[key] = parsed
    return resolve(Options.from_mapping(merged))


def from_file(path: str | None) -> Iterable[Setting]:
    """Yield the settings of a TOML file.  Raises ConfigError."""
    if path is None:
        return
    try:
        with Path(path).open("rb") as file:
            raw = file.read(FILE_SIZE_MAX + 1)
        if len(raw) > FILE_SIZE_MAX:
            raise ConfigError(f"{path} has more than {FILE_SIZE_MAX} bytes")
        sections = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    for section, values in sections.items():
        try:
            find_section(section)
        except ConfigError as error:
            raise ConfigError(f"{error.message} (file {path})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{section}: write it as a section, [{section}] (file {path})")
        for key, value in values.items():
            yield section, key, value, f"file {path}"


def from_environment(environment: Mapping[str, str]) -> Iterable[Setting]:
    """Yield the settings among the environment's variables.  Raises ConfigError."""
    for name in sorted(environment):
        if not name.startswith(PREFIX):
            continue
        section, separator, key = name[len(PREFIX) :].lower().partition("__")
        if not separator:
            raise ConfigError(f"{name}: variables are called {PREFIX}SECTION__KEY")
        yield section, key, environment[name], f"variable {name}"


def from_flags(flags: Mapping[str, str]) -> Iterable[Setting]:
    """Yield the settings given as flags."""
    for flag, value in flags.items():
        section, _, key = FLAGS[flag].partition(".")
        yield section, key, value, f"flag {flag}"


def resolve(options: Options) -> Options:
    """Fill in what depends on other keys."""
    node = options.node
    everywhere = node.listen in ("0.0.0.0", "::", "*")
    listed = [peer.host for peer in peer_list.parse(node.peers) if peer.node == node.id]
    own = listed[0] if listed else socket.gethostname() if everywhere else node.listen
    advertise = node.advertise or own
    resolved = dataclasses.replace(
        node,
        data_dir=os.path.abspath(node.data_dir),
        advertise=advertise,
        http_listen=node.http_listen or node.listen,
    )
    return dataclasses.replace(options, node=resolved)

