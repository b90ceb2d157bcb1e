"""From a trained model to numbers: `Prediction → Evaluation`."""
