"""A Datasette plugin: it loads walrust before Datasette opens a database, with only the functions that do not write or use the network."""

import os

import walrust

# Visitors type SQL. What streams is named by whoever runs Datasette, in walrust.toml or the environment.
os.environ.setdefault("WALRUST_FUNCTIONS", "read")
walrust.load()
