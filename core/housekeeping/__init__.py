"""What may go, and when: space, retention, backups."""
