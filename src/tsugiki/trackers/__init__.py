"""Runs in TensorBoard, Weights & Biases and MLflow, as listeners."""
