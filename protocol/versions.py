"""Names the versions of what crosses the wire.

A peer that speaks another protocol version gets `unsupported_version` and the list of those this
node speaks. Within one version the protocol only grows: a new optional header key or a new kind is
no new version, a changed meaning is. File formats carry versions of their own beside their layout.
"""

PROTOCOL_VERSION = 1
PROTOCOL_VERSIONS = (1,)
