"""The folder for bytes and values: wire and file formats; any bytes give a value or a RemoteProtocolError."""

if __name__ != "meterd.protocol":
    raise ImportError("import meterd.protocol, not protocol: a second copy means second classes")
