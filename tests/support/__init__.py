"""What tests share: a fake engine, fake transports, real daemons on port 0."""
