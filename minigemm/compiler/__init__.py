"""Source in; PTX, cubin and SASS out, and what the compiler said about it."""
