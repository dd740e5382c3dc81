"""The algorithms: plain torch functions that take a module and give a module and its facts."""
