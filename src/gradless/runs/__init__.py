"""One run: its configuration, training, result, saved model and model card."""
