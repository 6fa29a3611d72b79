"""The parts of the replication actor: peers, traffic, catching up, what nodes tell each other."""
