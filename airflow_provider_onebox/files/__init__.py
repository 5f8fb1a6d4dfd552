"""Records and attachments: to files, and from files."""
