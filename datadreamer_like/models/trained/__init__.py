"""Trained models: loading them, exporting them, and the node whose result is one."""
