"""What stands around the application: keys, sizes, numbers in flight, deadlines."""
