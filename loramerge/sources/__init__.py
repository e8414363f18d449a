"""Which adapters take part: expanded, opened, compared, described, cut into batches of units."""
