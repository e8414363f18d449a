"""The merge: planned, fitted, run, measured, proved, reported."""
