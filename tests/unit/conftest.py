"""For all unit tests; that it is here also lets them import the modules beside it."""

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
