"""Benchmarks: fixed work, verified, with results kept as files beside them."""
