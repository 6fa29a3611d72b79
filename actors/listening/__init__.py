"""Listeners, and what is known of who connects: clients, peers, HTTP."""
