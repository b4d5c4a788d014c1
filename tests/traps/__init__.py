"""Cases by rows of lists: each a known trap, asked of a whole server over sockets."""
