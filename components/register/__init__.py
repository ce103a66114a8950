"""The pipeline step register: `step.py` does it, `component.py` gives it its KFP signature."""
