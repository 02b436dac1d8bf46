"""What every part of specfleet shares: types, errors, configuration, clock. Imports neither torch nor grpc."""
