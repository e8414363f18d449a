"""Pages to look at: sections of numbers, each with its chart and with how to make it.

`report` makes one of sources or of a merge: one file that needs no network and runs no script but its own.
"""
