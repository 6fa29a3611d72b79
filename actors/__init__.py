"""The folder for acting: one module per actor; moves frames, files and time, decides nothing."""

if __name__ != "meterd.actors":
    raise ImportError("import meterd.actors, not actors: a second copy means second classes")
