"""What a question means, and how its answer is put together from cells."""
