// See io.h.
