"""The command line `skyreward`; each command imports what it needs when it runs."""
