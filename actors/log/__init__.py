"""The log as files: appending, opening, recovering, replaying."""
