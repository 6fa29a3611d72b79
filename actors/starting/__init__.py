"""What happens before a node has actors: directory, identity, copies of peers, checks."""
