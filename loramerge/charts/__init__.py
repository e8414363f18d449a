"""Pictures of plain tables: one file for each chart; the only room that imports Altair.

A chart is drawn from a `Table` and from nothing else, so a page can show the very numbers under it.
"""
