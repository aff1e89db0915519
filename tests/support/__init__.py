"""Code that tests in several folders share."""
