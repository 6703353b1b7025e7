"""Of the unit tests: how hypothesis runs."""

from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")
