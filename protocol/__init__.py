"""The folder for bytes and values, wire and files: any bytes give a value or an error of ours."""

if __name__ != "meterd.protocol":
    raise ImportError("import meterd.protocol, not protocol: a second copy means second classes")
