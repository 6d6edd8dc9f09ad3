"""Files: written as a whole or not at all, and read with errors that name what is wrong."""
