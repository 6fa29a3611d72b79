"""The manifest: what is written is read, and any changed byte is noticed."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.protocol import backup_manifest
from meterd.protocol.backup_manifest import BackupFile, BadManifest
from tests.support.backup_manifests import manifest

RAW = backup_manifest.encode(manifest())


def test_a_manifest_comes_back():
    again = backup_manifest.decode(RAW)
    assert again == manifest()
    assert (again.events, again.size, again.own_size, again.parent) == (5, 4106, 4106, None)


@given(st.integers(0, len(RAW) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(at, bit):
    raw = bytearray(RAW)
    raw[at] ^= 1 << bit
    with pytest.raises(BadManifest):
        backup_manifest.decode(bytes(raw))


@given(st.integers(0, len(RAW) - 1))
def test_a_short_one_is_noticed(size):
    with pytest.raises(BadManifest):
        backup_manifest.decode(RAW[:size])


@given(st.binary(max_size=100))
def test_other_bytes_are_no_manifest(raw):
    with pytest.raises(BadManifest):
        backup_manifest.decode(raw)


def test_incremental_files_lie_where_they_were_first_written():
    held = BackupFile("seg-1-1.seg", "segments", 5, "f" * 64, "meterd-base")
    own = manifest().files
    made = manifest(type="incr", chain=("meterd-base",), files=(*own, held))
    again = backup_manifest.decode(backup_manifest.encode(made))
    assert again.files[-1].object_name == "meterd-base/segments/seg-1-1.seg"
    assert (again.size, again.own_size) == (4111, 4106)
    assert again.parent == "meterd-base"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"chain": ("a/b",)},
        {"files": (BackupFile("../../etc/passwd", "meta", 1, "a" * 64, "meterd-one"),)},
        {"files": (BackupFile("x", "elsewhere", 1, "a" * 64, "meterd-one"),)},
        {"files": (BackupFile("x", "meta", 1, "a" * 64, "meterd-other"),)},
        {"files": (BackupFile("x", "meta", -1, "a" * 64, "meterd-one"),)},
        {"files": (BackupFile("x", "meta", 1, "A" * 64, "meterd-one"),)},
        {"files": (BackupFile("x", "meta", 1, "a" * 64, "meterd-one"),) * 2},
    ],
    ids=str,
)
def test_names_that_lead_elsewhere_are_refused(change):
    with pytest.raises(BadManifest):
        backup_manifest.decode(backup_manifest.encode(replace(manifest(), **change)))


def test_it_is_json_with_a_hash_anybody_can_check():
    import hashlib

    body = json.loads(RAW)
    claimed = body.pop("sha256")
    text = json.dumps(body, sort_keys=True).encode()
    assert hashlib.sha256(text).hexdigest() == claimed
    assert body["totals"] == [[3, 1, 4, str(-(10**30))], [255, 1, 1, str(2**100)]]
