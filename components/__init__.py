"""The pipeline's steps: plain functions over folders, and thin KFP components round them."""
