"""Everything that runs in Ray Serve: gateways, scorer replicas, request router, autoscaling."""
