"""Regular expressions of strangers, matched in a way that cannot hang."""
