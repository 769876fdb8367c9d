"""Routes of the native API, the status routes, the documentation pages and the playground."""
