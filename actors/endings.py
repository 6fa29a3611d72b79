"""How a process of a node ends: its exit codes, and which of them stop the whole node.

The numbers are those of `meterd.exits.DaemonExit`, which this layer must not import; a test
compares them.  Ending with one of `HALTING` says that starting again cannot help.
"""

CLEAN = 0
USAGE = 64
CORRUPT = 65
UNAVAILABLE = 69
INTERNAL = 70
CANNOT_CREATE = 73
IO_ERROR = 74
TEMPORARY = 75
PERMISSION = 77
CONFIGURATION = 78
IDENTITY = 79

HALTING = frozenset({USAGE, CORRUPT, CANNOT_CREATE, IO_ERROR, PERMISSION, CONFIGURATION, IDENTITY})
