"""The life of a key, with the real clients against the stand-ins and a clock that the tests set."""
