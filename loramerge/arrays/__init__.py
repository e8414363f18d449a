"""Numbers only: Grams, frames, bases, cores, what methods return, rounding. No file, no adapter."""
