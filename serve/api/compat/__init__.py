"""Wire formats of other services, one module each: each translates requests and responses."""
