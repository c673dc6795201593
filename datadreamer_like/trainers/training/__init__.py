"""The training loop, the tasks and the options of trainers."""
