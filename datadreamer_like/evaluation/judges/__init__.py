"""The judges, one file per kind of task, and the choice of a judge for the models of a comparison."""
