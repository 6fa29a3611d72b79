"""The folder for deciding: deterministic; time, randomness and results of I/O are passed in."""

if __name__ != "meterd.core":
    raise ImportError("import meterd.core, not core: a second copy means second classes")
