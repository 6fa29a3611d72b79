"""python -m meterd.compile: compile all kernels now, so that the first start need not."""

from __future__ import annotations

import sys
import time

from numba.core import config

from meterd.actors.node import warm_kernels


def main() -> None:
    """Compile what no cache holds yet, and say where the cache is."""
    began = time.monotonic()
    warm_kernels()
    seconds = time.monotonic() - began
    sys.stdout.write(f"kernels are compiled, in {config.CACHE_DIR} ({seconds:.1f} s)\n")


if __name__ == "__main__":
    main()
