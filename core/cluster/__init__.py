"""What a node decides about the cluster around the engine: members, plans, what peers send."""
