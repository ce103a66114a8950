"""How Redoubt speaks to a cluster: plain HTTP to the Kubernetes API and to Kubeflow Pipelines' REST API.

Serving, the pipeline's steps and the command line share these few calls, so neither `kfp` nor the `kubernetes` client
is needed to serve. Nothing here decides anything: it asks, and says in one line what went wrong.
"""
