"""Models that compute a value per text, such as classifiers."""
