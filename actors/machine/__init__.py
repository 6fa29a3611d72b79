"""A process and the machine it runs on: threads, clock, journal, systemd, processors."""
