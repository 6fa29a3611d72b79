"""Backups: made from a running node, verified and restored without one."""
