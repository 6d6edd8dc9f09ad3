"""How a fixed point is put on the tape."""
