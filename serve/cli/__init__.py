"""The command line `skyreward`. Each command imports its dependencies when it runs."""
