"""What is asked of a merge, as values, and what is kept of it: recipe and record."""
