"""What runs inside Ray Serve: gateways, scorer replicas, the request router, autoscaling."""
