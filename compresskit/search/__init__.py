"""``compress``: recipes are tried until the smallest or fastest model that keeps its bars is found."""
