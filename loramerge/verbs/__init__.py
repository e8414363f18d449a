"""One file for each other verb of the user."""
