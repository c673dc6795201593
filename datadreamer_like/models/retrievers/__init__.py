"""Retrievers: queries in, the texts of a corpus that fit them out."""
