"""What daemons tell the outside: structured logs, Prometheus metrics. Both are told by observers; nothing here decides."""
