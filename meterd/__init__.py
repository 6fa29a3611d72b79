"""meterd: the system of record for how much each customer used."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a checkout the sub-packages lie beside this folder, not in it.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "actors").is_dir():
    __path__.append(str(_checkout))
