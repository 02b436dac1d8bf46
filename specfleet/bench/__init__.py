"""Load on a running fleet, and figures of it: what `specfleet bench` and `specfleet status` are made of.

prompts, arrivals   what to ask, and when
load                asks it through the SDK; one Record per request
scrape              a daemon's metrics, and what happened between two looks at them
figures, daemons    numbers from records, and from metrics
fleet               the rows of `specfleet status`
"""
