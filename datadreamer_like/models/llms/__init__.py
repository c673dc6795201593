"""LLMs: their base, what goes in and comes out, and one file for each provider."""
