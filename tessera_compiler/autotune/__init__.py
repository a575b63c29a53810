"""Finds by measurement how linear maps are blocked best on the processor at hand."""
