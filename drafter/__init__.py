"""The daemon beside the user: speculators, the drafting session, the front doors. What it knows of its guesses runs compiled
where `specfleet native` has compiled it."""

from specfleet.native import enable

enable()
