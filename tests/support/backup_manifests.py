"""Manifests for tests that need no files behind them."""

from meterd.protocol.backup_manifest import BackupFile, Cut, Manifest, Metric


def manifest(name: str = "meterd-one", **fields) -> Manifest:
    """A small manifest; every field may be given."""
    files = (
        BackupFile("checkpoint.bin", "checkpoint", 10, "a" * 64, name),
        BackupFile("wal.log", "wal", 4096, "b" * 64, name),
    )
    made = {
        "name": name,
        "type": "full",
        "chain": (),
        "cluster_id": "c" * 32,
        "node_id": 0,
        "incarnation": 1,
        "meterd_version": "0.1.0",
        "storage_version": 1,
        "started": 1,
        "finished": 2,
        "horizon": -5,
        "cut": Cut(1, 4096, 1, 7, 8, 9, {3: (1, 2, "d" * 32), 256: (1, 5, "e" * 32)}),
        "checkpoint_sequence": 6,
        "files": files,
        "metrics": {1: Metric("calls", 1, 2)},
        "totals": {(3, 1): (4, -(10**30)), (255, 1): (1, 2**100)},
    }
    return Manifest(**made | fields)
