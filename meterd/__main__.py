"""python -m meterd: the daemon."""

from meterd.daemon import main

main(prog_name="meterd")
