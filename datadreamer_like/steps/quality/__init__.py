"""Steps that check a dataset: duplicates, contamination, validity, balance, label errors, and review by a person."""
