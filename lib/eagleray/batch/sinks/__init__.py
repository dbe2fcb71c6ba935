"""Where results go besides the committed files."""
