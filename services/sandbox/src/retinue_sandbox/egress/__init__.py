"""The way out of a box: an Envoy that reaches what policy grants and nothing else, by one Unix socket for each box."""
