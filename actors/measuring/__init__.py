"""Telemetry and health: what is counted, gathered and shown."""
