"""The commands of meterctl, one module each."""
