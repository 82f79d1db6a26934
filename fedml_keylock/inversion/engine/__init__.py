"""How candidates are searched: what was seen, what is optimised, the loop, and what it saves."""
