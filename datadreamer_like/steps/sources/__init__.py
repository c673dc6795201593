"""Steps that load rows."""
