"""Named tuples at the price of tuples, for places that every round passes."""

made = tuple.__new__
"""`made(Verdict, (position, ...))` with all fields is `Verdict(position, ...)` in a sixth of the time: a named tuple's own
constructor is a function in Python that sorts names and defaults out. Nothing counts the fields here."""
