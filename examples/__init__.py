"""Programs that a user starts from, one file each."""
