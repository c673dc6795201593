"""Steps that draw rows at random, without a model."""
