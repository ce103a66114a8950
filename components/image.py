"""The image in which every step runs on a cluster. The local runner ignores it."""

import os

# "python" in the name keeps kfp's local runner from warning about an image that it will not use.
IMAGE = os.environ.get("REDOUBT_IMAGE", "redoubt/steps:0.1.0-python3.11")
