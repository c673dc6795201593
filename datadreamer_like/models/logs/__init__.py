"""Logs of calls that were already paid for: their formats, their calls, and the answers that they give to prompts."""
