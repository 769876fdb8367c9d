"""The playground page, its login page, and their style and scripts."""
