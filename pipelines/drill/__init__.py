"""The drill: a live attack on a served model, watched from outside until the system has recovered, or failed to.

`options` is what may be asked, `server` the served process, `stages` what happens in order, `measure` the figures.
"""
