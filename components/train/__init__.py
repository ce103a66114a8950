"""The pipeline step train: `step.py` does it, `component.py` gives it its KFP signature."""
