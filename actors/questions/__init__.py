"""How questions are answered: by usage from memory, by query from segments and log files."""
