"""Finding modules by regular expressions of strangers, which cannot hang."""
