"""Consensus: Raft, one group per partition, sans-I/O.

docs/REPLICATION.md has the protocol and why it is safe.  `Node` owns the groups of one node;
`Group` is one replica of one group, by section of the paper:

  state       what a replica knows (Figure 2), and how it writes and sends
  elections   RequestVote, pre-vote, who may vote and campaign
  following   AppendEntries as its receiver sees it
  leading     AppendEntries as the leader sees it; commit
  reading     leases and read rounds
  transfer    leadership transfer
  membership  single-server changes
  snapshots   compaction and installing
  repair      damaged ops
  group       the door: `step`
"""
