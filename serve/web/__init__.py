"""The playground: a page in which a person tries the service, and the door before it."""
