"""The log: blocks, records, slices, and what they say of each group."""
