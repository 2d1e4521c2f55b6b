"""Other people's schedulers, compared with this package.

`mappings` has the formula of each scheduler, and what its arguments are here: the tests compare both. `facts` has the
sentences of docs/migrate.md, each with its check. `python -m tests.peers` runs the real classes.
"""
