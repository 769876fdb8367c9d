"""What is known of each request: its record, its line in the log, its trace."""
