"""The inference server: predictions, verdicts, the watch over them, and the retraining runs that it asks for.

Start it with `python -m serving`. Nothing here imports kfp, `pipelines` or `components`.
"""
