"""Files on stable storage, whoever needs them: the disk, memory maps, what a directory holds."""
