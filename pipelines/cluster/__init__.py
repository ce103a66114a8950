"""The pipeline on a cluster: settings, compilation, upload, runs that are followed, and why one does not get on."""
