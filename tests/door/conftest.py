"""Marks: `campaign` tests repeat; their counts grow with WALRUST_ROUNDS and `make crash` runs them alone."""


def pytest_configure(config):
    config.addinivalue_line("markers", "campaign: repeats under chance; `make crash` multiplies the counts")
