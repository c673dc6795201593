"""Models that compute something of each text, such as classifiers."""
