"""Tasks turn rows into batches and figures, one file per kind of task; trainers and judges share them."""
