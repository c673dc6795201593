"""Steps that embed and retrieve."""
