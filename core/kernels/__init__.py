"""Numba kernels: the per-event work, each with a plain-Python model in tests/support."""
