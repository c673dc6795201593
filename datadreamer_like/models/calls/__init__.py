"""The pipeline that every call to a model goes through: its engines, its cache, its limits."""
