"""A simulator for consensus: the real engine on simulated machines, driven by one seed.

plan      what one seed draws: size, speeds, which faults, how many of each
disk      blocks that may be lost until they are synced; what a crash leaves
machine   one node: engine, disk, clock, state machine
world     time, network, scheduling
nemesis   faults and operations
clients   proposals with retries, reads
checks    what must hold after every step
runner    one seed from beginning to end; shrinking
seeds     many of them; tally: what they did together, kept over runs
mutants   bugs on purpose

scenario, scenario_player play `scenarios/*.txt`: schedules of one group, written as text.

The second layer (core_*) puts the product's log, recovery, wire and state on each machine:

core          many seeds, or one
core_world    plans, rules, one seed from beginning to end
core_machine  one node: engine, log on a disk that loses sectors, recovery, wire
core_usage    its state: commit queue, applier, checkpoints
core_reader   ops that are only on disk
core_clients  batches, commands, questions
core_history  what was committed, counted in plain Python
core_nemesis  the product's rule for members
core_mutants  bugs on purpose
"""
