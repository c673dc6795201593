"""The pipeline of all calls to models: engines, cache and rate limits."""
