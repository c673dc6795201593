"""Steps that prompt an LLM."""
