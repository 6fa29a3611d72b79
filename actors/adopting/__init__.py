"""A node takes some partitions of a peer's copy over, offline (docs/PARTITION_COPY.md)."""
