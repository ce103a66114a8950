"""The pipeline step refusal: `step.py` does it, `component.py` gives it its KFP signature."""
