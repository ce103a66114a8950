"""The pipeline step begin: `step.py` does it, `component.py` gives it its KFP signature."""
