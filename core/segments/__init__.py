"""Segments: making, checking, reading, merging them."""
