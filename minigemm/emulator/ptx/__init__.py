"""PTX text to a `Module`: the parser, the program that it makes, constant expressions, and inlined calls."""
