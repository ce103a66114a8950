"""The chain of components, how it runs here and on a cluster, and the `redoubt` command."""
