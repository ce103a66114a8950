"""The pipeline step compare: `step.py` does it, `component.py` gives it its KFP signature."""
