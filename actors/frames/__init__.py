"""What crosses between the actors of a node: sockets, bundles, rings, shared words."""
