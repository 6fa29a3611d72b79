"""The state machine: what every committed record does, and what it is made of."""
