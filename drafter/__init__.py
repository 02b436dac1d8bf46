"""The daemon beside the user: speculators, the drafting session, the front doors."""
