"""For all tests; that it is here also lets them import the modules beside it."""
