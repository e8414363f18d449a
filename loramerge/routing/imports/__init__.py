"""Files that bring their own gate: one file for each system, and the table that names them."""
