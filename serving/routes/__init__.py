"""The HTTP routes, one file for each subject. Who may ask is decided before, in `serving.front`."""
