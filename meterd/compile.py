"""python -m meterd.compile: compile all modules and kernels now, so that the first start need not.

Where Python may write no bytecode (`PYTHONDONTWRITEBYTECODE`, a directory that belongs to somebody
else) every start, of `meterctl` too, would compile the modules anew: half a second and more.
"""

from __future__ import annotations

import compileall
import sys
import time

from numba.core import config

import meterd
from meterd import actors, core, protocol
from meterd.actors.node import warm_kernels

PACKAGES = (meterd, actors, core, protocol)


def main() -> None:
    """Compile what no cache holds yet, and say where the cache is."""
    began = time.monotonic()
    for package in PACKAGES:
        compileall.compile_dir(package.__path__[0], quiet=1)
    warm_kernels()
    seconds = time.monotonic() - began
    sys.stdout.write(f"kernels are compiled, in {config.CACHE_DIR} ({seconds:.1f} s)\n")


if __name__ == "__main__":
    main()
