"""Runs in TensorBoard, Weights & Biases and MLflow: what the services read back."""
