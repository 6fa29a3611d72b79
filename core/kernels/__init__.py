"""Numba kernels: the per-event work, each with a plain-Python model in the tests.

Compiled kernels are cached in a folder named after a digest of all kernel sources and the limits
they compile in.  numba itself looks only at the file a kernel stands in, but kernels inline
functions of other files: without the digest an edit there would leave stale machine code in use.

Kernels on the way of an event have `_nrt=False`: they allocate nothing, and numba would otherwise
count references to the arrays of a table with locked instructions, a fifth of the time of apply.
One without may not take an array back from one with it, inside a tuple: it would count what was
never counted, and free the array.  Views behind a handle are not counted at all.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from numba.core import config

from meterd.core.kernels import lean_library

_here = Path(__file__).resolve().parent


def _digest() -> str:
    total = hashlib.sha256()
    protocol = _here.parent.parent / "protocol"
    for source in [*sorted(_here.glob("*.py")), protocol / "limits.py", protocol / "errors.py"]:
        if source.is_file():
            total.update(source.read_bytes())
    return total.hexdigest()[:16]


def _cache_folder() -> str:
    """Return the first folder to be written: the one asked for, beside the sources, the user's."""
    asked = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY")
    user = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    for base in [Path(asked)] if asked else [_here / "__pycache__", Path(user) / "meterd"]:
        folder = base / f"kernels-{_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return str(folder)
        except OSError:
            continue
    return str(Path(tempfile.gettempdir()) / f"meterd-kernels-{os.getuid()}-{_digest()}")


config.CACHE_DIR = _cache_folder()
lean_library.install()
