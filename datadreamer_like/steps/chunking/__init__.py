"""Steps that cut texts into parts."""
