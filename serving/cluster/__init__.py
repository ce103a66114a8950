"""Serving with several replicas on Kubernetes: who leads, the ledger that they share, the counts that they pass on, and
runs through Kubeflow Pipelines. Each has its counterpart for one server outside; the settings choose."""
