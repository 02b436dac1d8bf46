"""How the shipped pair was trained, so that anyone can rebuild or better it. `python -m models.train --help`."""
