"""The routes of the native API and of what operators read."""
