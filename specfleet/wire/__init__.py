"""The only package that knows both proto and core types: codec, status table, channels, servers."""
