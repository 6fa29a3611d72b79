"""The pieces of housekeeping that the retention sweeper does, one file each."""
