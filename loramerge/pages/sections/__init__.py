"""One file for each section of a page, and the table of them.

A section is a function from the subject of a page to a `Section`, or to None where it has nothing to say.
"""
