"""The pipeline step gate: `step.py` does it, `component.py` gives it its KFP signature."""
