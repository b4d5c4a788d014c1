"""Known traps, listed by rows, each tried on a whole server over sockets."""
