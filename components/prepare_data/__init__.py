"""The pipeline step prepare_data: `step.py` does it, `component.py` gives it its KFP signature."""
