"""Tasks: what the rows of one kind are to a model. One file a kind; trainers and measures share them."""
