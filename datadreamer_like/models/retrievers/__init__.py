"""Retrievers: find texts of a corpus for queries."""
