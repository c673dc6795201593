"""Steps that label rows with a model."""
