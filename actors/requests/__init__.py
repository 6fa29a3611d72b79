"""A client's request on its way through a node, and the way of its answer back."""
