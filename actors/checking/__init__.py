"""Checks and repairs of a data directory that no node uses."""
