"""Arrays that cannot be written: kernels are compiled once for all sources of bytes and rows."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written, as mapped files are."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view
