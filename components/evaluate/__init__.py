"""The pipeline step evaluate: `step.py` does it, `component.py` gives it its KFP signature."""
