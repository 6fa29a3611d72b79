"""A simulator for consensus: the real engine on simulated machines, driven by one seed.

plan      what one seed draws: size, speeds, which faults, how many of each
disk      blocks that may be lost until they are synced; what a crash leaves
machine   one node: engine, disk, clock, state machine
world     time, network, scheduling
nemesis   faults and operations
clients   proposals with retries, reads
checks    what must hold after every step
runner    one seed from beginning to end; shrinking
"""
