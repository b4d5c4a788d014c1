"""Files that tests read, made by other tools."""
