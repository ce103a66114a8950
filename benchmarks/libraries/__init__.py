"""Attacks of torchattacks and foolbox: see `__main__`."""
