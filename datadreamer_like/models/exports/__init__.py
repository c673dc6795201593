"""Exports: a trained model in the formats of other runtimes, each one file here, and models run on ONNX Runtime."""
