"""The serving benchmark: `python -m benchmarks.serving`."""
