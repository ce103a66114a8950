"""The pipeline step fit_detector: `step.py` does it, `component.py` gives it its KFP signature."""
